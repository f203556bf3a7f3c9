// The descriptions of a restore, and how they come into the tasks' tables.
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <set>

#include "state/file_kind.h"
#include "state/files/lost_names.h"
#include "state/locks/locks.h"
#include "sys/file.h"

namespace ferry::state {
namespace {

using image::Name;
using image::Type;

constexpr std::size_t kDescriptorsPerBatch = 8000;  // three records each, well within the batch area

}  // namespace

struct OpenFiles::State {
  RestoreContext* context = nullptr;
  std::vector<std::unique_ptr<FileKind>> kinds = make_file_kinds();
  std::map<std::uint32_t, const pb::FileEntry*> entries;
  std::map<std::uint32_t, UniqueFd> open;
  std::set<std::uint32_t> opening;
  std::set<std::uint32_t> asynchronous;  // that a task has set O_ASYNC of
  files::LostNames lost;

  Result<FileKind*> kind_of(const pb::FileEntry& entry) {
    const auto found =
        std::find_if(kinds.begin(), kinds.end(), [&](const auto& k) { return k->type() == entry.type(); });
    if (found == kinds.end()) {
      return fail(Kind::unsupported, "file {} is of a kind ({}) that ferry cannot restore", entry.id(),
                  pb::FdType_Name(entry.type()));
    }
    return found->get();
  }
};

OpenFiles::OpenFiles() : state_(std::make_unique<State>()) {}
OpenFiles::~OpenFiles() = default;

Result<void> OpenFiles::prepare(RestoreContext& context) {
  state_->context = &context;
  for (const auto* entry : context.set.list<pb::FileEntry>(Name{Type::files, 0})) {
    const auto [at, fresh] = state_->entries.emplace(entry->id(), entry);
    // A TUN descriptor is written twice under one id, first as the path it was opened by.
    if (!fresh && at->second->type() != pb::FD_REG) {
      return fail(Kind::corrupt, "files.img has two entries with id {}", entry->id());
    }
    at->second = entry;
  }
  return {};
}

const pb::FileEntry* OpenFiles::entry(std::uint32_t id) const {
  const auto found = state_->entries.find(id);
  return found == state_->entries.end() ? nullptr : found->second;
}

Result<int> OpenFiles::get(std::uint32_t id) {
  if (const auto found = state_->open.find(id); found != state_->open.end()) {
    return found->second.get();
  }
  const pb::FileEntry* wanted = entry(id);
  if (wanted == nullptr) {
    return fail(Kind::corrupt, "files.img has no entry with id {}", id);
  }
  if (!state_->opening.insert(id).second) {
    return fail(Kind::corrupt, "file {} of files.img needs itself", id);
  }
  FERRY_TRY(FileKind * kind, state_->kind_of(*wanted));
  FERRY_TRY(UniqueFd fd, kind->open(*wanted, *state_->context).during("restoring {} {}", kind->name(), id));
  state_->opening.erase(id);
  const int number = fd.get();
  state_->open.emplace(id, std::move(fd));
  return number;
}

Result<void> OpenFiles::open_all(RestoreContext& context) {
  for (const auto& kind : state_->kinds) {
    FERRY_CHECK(kind->begin(context).during("restoring the {}s of the tree", kind->name()));
  }
  for (const Name& name : context.set.names(Type::fdinfo)) {
    for (const auto* row : context.set.list<pb::FdinfoEntry>(name)) {
      FERRY_CHECK(get(row->id()).during("opening fd {}", row->fd()));
    }
  }
  FERRY_TRY(const auto of_dead, state_->lost.of_dead_processes(context));
  for (const std::uint32_t id : of_dead) {
    FERRY_CHECK(get(id));
  }
  // Connecting may open further files (descriptors in flight), which are then connected as well.
  std::set<std::uint32_t> connected;
  for (bool more = true; more;) {
    more = false;
    std::vector<std::uint32_t> ids;
    for (const auto& [id, fd] : state_->open) {
      if (!connected.contains(id)) {
        ids.push_back(id);
      }
    }
    for (const std::uint32_t id : ids) {
      const pb::FileEntry* e = entry(id);
      FERRY_TRY(FileKind * kind, state_->kind_of(*e));
      FERRY_CHECK(kind->connect(*e, state_->open.at(id).get(), context).during("connecting {} {}", kind->name(), id));
      connected.insert(id);
      more = true;
    }
  }
  return {};
}

Result<void> OpenFiles::install(RestoreContext& context, RestoreTask& task) {
  auto rows = context.set.list<pb::FdinfoEntry>(Name{Type::fdinfo, task.ids->files_id()});
  std::sort(rows.begin(), rows.end(), [](const auto* a, const auto* b) { return a->fd() < b->fd(); });
  std::set<std::uint32_t> wanted;
  for (const auto* row : rows) {
    if (row->fd() > 0x7fffffff || !wanted.insert(row->fd()).second) {
      return fail(Kind::corrupt, "fdinfo-{} lists descriptor {} twice or out of range", task.ids->files_id(),
                  row->fd());
    }
  }
  // Our pidfd must not stand where a descriptor of the program belongs.
  tracee::Batch batch;
  int controller = task.controller_pidfd;
  if (wanted.contains(static_cast<std::uint32_t>(controller))) {
    // The lowest number that is free: the highest of the program may be the last that its limit allows.
    int spare = 0;
    while (wanted.contains(static_cast<std::uint32_t>(spare))) {
      ++spare;
    }
    batch.must("moving the controller's pidfd", SYS_dup3, {controller, spare, 0});
    controller = spare;
  }
  if (controller > 0) {
    batch.must("closing inherited descriptors", SYS_close_range, {0, controller - 1, 0});
  }
  batch.must("closing inherited descriptors", SYS_close_range, {controller + 1, ~0U, 0});
  // The kernel hands out the lowest free number, so where each copy arrives is known beforehand.
  std::uint32_t lowest_free = 0;
  std::set<std::uint32_t> used{static_cast<std::uint32_t>(controller)};
  std::size_t in_batch = 0;
  for (const auto* row : rows) {
    while (used.contains(lowest_free)) {
      ++lowest_free;
    }
    FERRY_TRY(const int ours, get(row->id()));
    const bool close_on_exec = (row->flags() & 1) != 0;
    batch.must("fetching a descriptor", SYS_pidfd_getfd, {controller, ours, 0});
    if (lowest_free == row->fd()) {
      if (!close_on_exec) {  // pidfd_getfd(2) sets it
        batch.must("fcntl(F_SETFD)", SYS_fcntl, {row->fd(), F_SETFD, 0});
      }
    } else {
      batch.must("placing a descriptor", SYS_dup3, {lowest_free, row->fd(), close_on_exec ? O_CLOEXEC : 0});
      batch.must("closing the copy", SYS_close, {lowest_free});
    }
    used.insert(row->fd());
    if (++in_batch == kDescriptorsPerBatch) {
      FERRY_CHECK(task.process.run(task.leader(), batch));
      batch = {};
      in_batch = 0;
    }
  }
  task.controller_pidfd = controller;
  for (const auto& kind : state_->kinds) {
    FERRY_CHECK(kind->attach(task, context, batch).during("{}s of pid {}", kind->name(), task.ns_pid()));
  }
  batch.must("closing the controller's pidfd", SYS_close, {controller});
  for (const auto* row : rows) {
    const pb::FileEntry* e = entry(row->id());
    FERRY_TRY(FileKind * kind, state_->kind_of(*e));
    FERRY_CHECK(kind->settle(*e, *row, task, context, batch).during("settling fd {}", row->fd()));
    const std::uint32_t flags = status_flags_of(*e, *this);
    if ((flags & O_ASYNC) != 0 && state_->asynchronous.insert(row->id()).second) {
      // Off first: open(2) may have set the flag, which does not arm it.
      batch.must("fcntl(F_SETFL)", SYS_fcntl, {row->fd(), F_SETFL, flags & ~static_cast<std::uint32_t>(O_ASYNC)});
      batch.must("fcntl(F_SETFL)", SYS_fcntl, {row->fd(), F_SETFL, flags});
    }
  }
  FERRY_CHECK(locks::restore(task, context, batch));
  FERRY_CHECK(task.process.run(task.leader(), batch).during("descriptors of pid {}", task.ns_pid()));
  task.controller_pidfd = -1;
  return {};
}

Result<void> OpenFiles::resume(RestoreContext& context) {
  for (const auto& [id, fd] : state_->open) {
    const pb::FileEntry* e = entry(id);
    FERRY_TRY(FileKind * kind, state_->kind_of(*e));
    FERRY_CHECK(kind->resume(*e, fd.get(), context).during("resuming {} {}", kind->name(), id));
  }
  return {};
}

Result<void> OpenFiles::complete(RestoreContext& context) {
  for (const auto& kind : state_->kinds) {
    FERRY_CHECK(kind->complete(context).during("completing the {}s of the tree", kind->name()));
  }
  FERRY_CHECK(locks::break_leases(context));
  FERRY_CHECK(state_->lost.end_dead_processes());
  return state_->lost.remove_helper_links();
}

Result<UniqueFd> OpenFiles::open_path(const pb::RegFileEntry& entry, int flags) {
  return state_->lost.open(*state_->context, entry, flags);
}

Result<UniqueFd> OpenFiles::reopen(std::uint32_t id, int flags) {
  const pb::FileEntry* e = entry(id);
  if (e == nullptr || e->type() != pb::FD_REG) {
    return fail(Kind::corrupt, "files.img has no path with id {}", id);
  }
  FERRY_TRY(const int fd, get(id));
  // Through our own descriptor: the file may have no name any more.
  return sys::open(fmt::format("/proc/self/fd/{}", fd), flags);
}

}  // namespace ferry::state

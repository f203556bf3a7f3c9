// Which descriptions a stopped tree holds, and which descriptors share one.
#include <fcntl.h>
#include <linux/kcmp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <limits>
#include <set>
#include <tuple>

#include "state/file_kind.h"
#include "state/files/build_id.h"
#include "state/files/names.h"
#include "state/locks/locks.h"
#include "state/nsids/nsids.h"
#include "sys/file.h"

namespace ferry::state {
namespace {

using image::Name;
using image::Type;

// Cheap facts that two descriptors of one description have in common; kcmp(2) decides among equals.
struct Likeness {
  dev_t dev;
  ino_t ino;
  std::uint32_t flags;
  std::uint64_t pos;
  int mnt_id;
  auto operator<=>(const Likeness&) const = default;
};

// kcmp(2) orders descriptions as well, so that one among thousands that look alike (eventfds) is found by
// halving.
bool is_before(int a, int b) {
  const auto self = ::getpid();
  return ::syscall(SYS_kcmp, self, self, KCMP_FILE, a, b) == 1;
}

}  // namespace

struct FileTable::State {
  struct Known {
    std::uint32_t id;
    pb::FdType type;
    UniqueFd ours;
  };
  struct ByDescription {
    using is_transparent = void;
    bool operator()(const Known& a, const Known& b) const { return is_before(a.ours.get(), b.ours.get()); }
    bool operator()(const Known& a, int b) const { return is_before(a.ours.get(), b); }
    bool operator()(int a, const Known& b) const { return is_before(a, b.ours.get()); }
  };
  std::vector<std::unique_ptr<FileKind>> kinds = make_file_kinds();
  std::map<Likeness, std::set<Known, ByDescription>> known;
  std::map<std::pair<HostPid, int>, std::uint32_t> ids;
  std::map<std::uint32_t, int> ours;  // by id, owned by `known`
  // Mapped and otherwise used files by inode and mount: one entry each.
  std::map<std::tuple<dev_t, ino_t, std::string, std::uint32_t>, std::uint32_t> paths;
  files::Names names;
};

FileTable::FileTable() : state_(std::make_unique<State>()) {}
FileTable::~FileTable() = default;

Result<void> FileTable::describe(DumpContext& context, DumpTask& task, int ours, const struct stat& stat,
                                 const std::string& link, const std::string& subject, pb::RegFileEntry& out) {
  return state_->names.describe(context, task, ours, stat, link, subject, out);
}

void FileTable::keep_links() { state_->names.keep_links(); }

namespace {

Result<FdProbe> probe_fd(DumpTask& task, int fd, UniqueFd& holder) {
  const long got = ::syscall(SYS_pidfd_getfd, task.pidfd.get(), fd, 0);
  if (got < 0) {
    return sys_fail(fmt::format("pidfd_getfd(pid {}, fd {})", task.pid, fd));
  }
  holder = UniqueFd(static_cast<int>(got));
  FERRY_TRY(const auto st, sys::stat_fd(holder.get(), fmt::format("pid {} fd {}", task.pid, fd)));
  FERRY_TRY(const auto text, sys::read_file_at(task.proc.get(), fmt::format("fdinfo/{}", fd)));
  FERRY_TRY(auto info, sys::parse_fdinfo(text));
  FERRY_TRY(auto link, sys::read_link_at(task.proc.get(), fmt::format("fd/{}", fd)));
  return FdProbe{task, fd, holder.get(), st, std::move(info), std::move(link)};
}

}  // namespace

void FileTable::prepare(HostPid pid) {
  std::vector<HostPid> todo{pid};
  for (std::size_t i = 0; i < todo.size(); ++i) {
    const auto proc = sys::open_proc(todo[i]);
    const auto numbers = proc.has_value() ? sys::numeric_entries(proc->get(), "fd") : Result<std::vector<int>>();
    for (const int fd : numbers.has_value() ? *numbers : std::vector<int>()) {
      const auto link = sys::read_link_at(proc->get(), fmt::format("fd/{}", fd));
      for (const auto& kind : state_->kinds) {
        if (link.has_value()) {
          kind->prepare(proc->get(), fd, *link);
        }
      }
    }
    const auto text = sys::read_file(fmt::format("/proc/{}/task/{}/children", todo[i], todo[i]));
    const auto children = text.has_value() ? sys::parse_children(*text) : Result<std::vector<HostPid>>();
    if (children.has_value()) {
      todo.insert(todo.end(), children->begin(), children->end());
    }
  }
}

Result<void> FileTable::collect_all(DumpContext& context) {
  for (auto& task : context.tasks) {
    if (task->zombie || (task->parent != nullptr && task->parent->ids->files_id() == task->ids->files_id())) {
      continue;  // a shared table is listed once, with the parent
    }
    const Name fdinfo{Type::fdinfo, task->ids->files_id()};
    FERRY_TRY(auto numbers, sys::numeric_entries(task->proc.get(), "fd"));
    std::sort(numbers.begin(), numbers.end());
    for (const int fd : numbers) {
      UniqueFd holder;
      FERRY_TRY(FdProbe probe, probe_fd(*task, fd, holder));
      FERRY_CHECK(locks::collect(probe, context));
      const bool close_on_exec = (probe.info.flags & O_CLOEXEC) != 0;
      const Likeness likeness{probe.stat.st_dev, probe.stat.st_ino, probe.status_flags(), probe.info.pos,
                              probe.info.mnt_id};
      auto& alike = state_->known[likeness];
      const auto same = alike.find(holder.get());
      std::uint32_t id = 0;
      pb::FdType type = pb::FD_UND;
      if (same != alike.end()) {
        id = same->id;
        type = same->type;
      } else {
        const auto kind =
            std::find_if(state_->kinds.begin(), state_->kinds.end(), [&](const auto& k) { return k->matches(probe); });
        if (kind == state_->kinds.end()) {
          return fail(Kind::unsupported, "{}: ferry cannot carry this kind of file over", probe.subject());
        }
        id = next_id();
        type = (*kind)->type();
        pb::FileEntry entry;
        entry.set_type(type);
        entry.set_id(id);
        FERRY_CHECK((*kind)->collect(probe, context, entry).during("saving pid {} fd {}", task->pid, fd));
        context.set.add(Name{Type::files, 0}, std::move(entry));
        state_->ours[id] = holder.get();
        alike.insert({id, type, std::move(holder)});
      }
      state_->ids[{task->pid, fd}] = id;
      pb::FdinfoEntry row;
      row.set_id(id);
      row.set_flags(close_on_exec ? 1 : 0);
      row.set_type(type);
      row.set_fd(static_cast<std::uint32_t>(fd));
      context.set.add(fdinfo, std::move(row));
    }
  }
  for (const auto& kind : state_->kinds) {
    FERRY_CHECK(kind->finish(context).during("saving what the {}s of the tree share", kind->name()));
  }
  return {};
}

Result<void> FileTable::before_end(DumpContext& context) {
  for (const auto& kind : state_->kinds) {
    FERRY_CHECK(kind->before_end(context).during("silencing the {}s of the tree", kind->name()));
  }
  return {};
}

Result<void> FileTable::before_going_on(DumpContext& context) {
  for (const auto& kind : state_->kinds) {
    FERRY_CHECK(kind->before_going_on(context).during("letting the {}s of the tree go on", kind->name()));
  }
  return {};
}

Result<std::uint32_t> FileTable::add_path(DumpContext& context, DumpTask& task, int ours, const std::string& link,
                                          std::uint32_t flags) {
  FERRY_TRY(const auto st, sys::stat_fd(ours, link));
  // The same file by the same path, but in another mount namespace, is not the same.
  const std::uint32_t ns = namespace_of(*task.ids, NsKind::mnt);
  const bool nested = ns != namespace_of(*context.root().ids, NsKind::mnt);
  auto& id = state_->paths[{st.st_dev, st.st_ino, nested ? fmt::format("{}:{}", ns, link) : link, flags}];
  if (id != 0) {
    return id;
  }
  pb::FileEntry entry;
  entry.set_type(pb::FD_REG);
  entry.set_id(next_id());
  pb::RegFileEntry& reg = *entry.mutable_reg();
  reg.set_id(entry.id());
  reg.set_flags(flags);
  reg.set_pos(0);
  for (const auto set : {&pb::FownEntry::set_uid, &pb::FownEntry::set_euid, &pb::FownEntry::set_signum,
                         &pb::FownEntry::set_pid_type, &pb::FownEntry::set_pid}) {
    (reg.mutable_fown()->*set)(0);
  }
  FERRY_TRY(const int mount, sys::mount_of(ours));
  reg.set_mnt_id(mount);
  FERRY_CHECK(describe(context, task, ours, st, link, fmt::format("pid {}, {}", task.pid, link), reg));
  if (S_ISREG(st.st_mode) && st.st_nlink != 0 && context.options.file_validation == FileValidation::build_id) {
    FERRY_TRY(const auto build_id, files::read_build_id(ours));
    reg.mutable_build_id()->Assign(build_id.begin(), build_id.end());
  }
  id = entry.id();
  context.set.add(Name{Type::files, 0}, std::move(entry));
  return id;
}

int FileTable::ours(std::uint32_t id) const {
  const auto found = state_->ours.find(id);
  return found == state_->ours.end() ? -1 : found->second;
}

std::vector<std::pair<std::uint32_t, int>> FileTable::of_inode(dev_t dev, ino_t ino) const {
  std::vector<std::pair<std::uint32_t, int>> out;
  const Likeness first{dev, ino, 0, 0, std::numeric_limits<int>::min()};
  for (auto at = state_->known.lower_bound(first); at != state_->known.end(); ++at) {
    if (at->first.dev != dev || at->first.ino != ino) {
      break;
    }
    for (const State::Known& known : at->second) {
      out.emplace_back(known.id, known.ours.get());
    }
  }
  return out;
}

std::uint32_t FileTable::id_of(const DumpTask& task, int fd) const {
  const DumpTask* owner = &task;
  while (owner->parent != nullptr && owner->parent->ids->files_id() == owner->ids->files_id()) {
    owner = owner->parent;
  }
  const auto found = state_->ids.find({owner->pid, fd});
  return found == state_->ids.end() ? 0 : found->second;
}

Result<std::uint32_t> FileTable::add_description(DumpContext& context, DumpTask& task, int ours) {
  FERRY_TRY(const auto st, sys::stat_fd(ours, "a descriptor in flight"));
  FERRY_TRY(const auto text, sys::read_file(fmt::format("/proc/self/fdinfo/{}", ours)));
  FERRY_TRY(auto info, sys::parse_fdinfo(text));
  const Likeness likeness{st.st_dev, st.st_ino, info.flags & ~static_cast<std::uint32_t>(O_CLOEXEC), info.pos,
                          info.mnt_id};
  if (const auto alike = state_->known.find(likeness); alike != state_->known.end()) {
    if (const auto same = alike->second.find(ours); same != alike->second.end()) {
      return same->id;
    }
  }
  FERRY_TRY(auto link, sys::read_link(fmt::format("/proc/self/fd/{}", ours)));
  FERRY_TRY(UniqueFd holder, sys::duplicate(ours));
  const FdProbe probe{task, -1, holder.get(), st, std::move(info), std::move(link)};
  const auto kind =
      std::find_if(state_->kinds.begin(), state_->kinds.end(), [&](const auto& k) { return k->matches(probe); });
  if (kind == state_->kinds.end()) {
    return fail(Kind::unsupported, "{}: ferry cannot carry this kind of file over", probe.subject());
  }
  pb::FileEntry entry;
  entry.set_type((*kind)->type());
  entry.set_id(next_id());
  FERRY_CHECK((*kind)->collect(probe, context, entry).during("saving a descriptor in flight in pid {}", task.pid));
  const std::uint32_t id = entry.id();
  const pb::FdType type = entry.type();
  context.set.add(Name{Type::files, 0}, std::move(entry));
  state_->ours[id] = holder.get();
  state_->known[likeness].insert({id, type, std::move(holder)});
  return id;
}

}  // namespace ferry::state

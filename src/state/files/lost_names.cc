#include "state/files/lost_names.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <set>
#include <utility>

#include "state/file_kind.h"
#include "state/files/ghost.h"
#include "state/nested/nested.h"
#include "sys/file.h"

namespace ferry::state::files {
namespace {

using image::Name;
using image::Type;

constexpr std::uint32_t kOldGhostMark = 0x80000000;  // very old sets have no type and mark ghosts with it
constexpr std::uint64_t kHelper = 1ULL << 31;

std::string by_number(int fd) { return fmt::format("/proc/self/fd/{}", fd); }

Result<UniqueFd> open_path(const std::string& path) { return sys::open(path, O_PATH | O_NOFOLLOW); }

std::size_t depth_of(const std::string& path) {
  return static_cast<std::size_t>(std::count(path.begin(), path.end(), '/'));
}

}  // namespace

Result<void> LostNames::index(RestoreContext& context) {
  for (const auto* remap : context.set.list<pb::RemapFilePathEntry>(Name{Type::remap_fpath, 0})) {
    const pb::FileEntry* file = context.files.entry(remap->orig_id());
    if (file == nullptr || !file->has_reg()) {
      return fail(Kind::corrupt, "remap-fpath.img names file {}, which is no path", remap->orig_id());
    }
    if (remap->has_remap_type() && remap->remap_type() == pb::REMAP_PROCFS) {
      dead_pids_[remap->orig_id()] = remap->remap_id();
      continue;
    }
    const bool linked = remap->has_remap_type() && remap->remap_type() == pb::REMAP_LINKED;
    const std::uint32_t number = linked ? remap->remap_id() : remap->remap_id() & ~kOldGhostMark;
    Object& object = objects_[linked ? static_cast<std::uint32_t>(number | kHelper) : number];
    object.number = number;
    object.files.push_back(&file->reg());
    if (linked) {
      const pb::FileEntry* helper = context.files.entry(number);
      if (helper == nullptr || !helper->has_reg()) {
        return fail(Kind::corrupt, "remap-fpath.img names helper {}, which is no path", number);
      }
      object.helper = helper->reg().name();
    } else {
      FERRY_TRY(object.ghost, context.set.one<pb::GhostFileEntry>({Type::ghost_file, number}));
    }
  }
  return {};
}

Result<void> LostNames::prepare(RestoreContext& context) {
  if (std::exchange(prepared_, true)) {
    return {};
  }
  FERRY_CHECK(index(context));
  std::set<Inside*> insides;
  for (auto& [number, object] : objects_) {
    FERRY_TRY(object.inside, context.nested.inside_of_mount(context, object.files.front()->mnt_id()));
    insides.insert(object.inside);
  }
  for (Inside* inside : insides) {
    auto made_all = inside->run([&]() -> Result<void> {
      auto made = make_all(inside);
      // Whatever happened: nothing of what was made may stay.
      Result<void> cleared;
      for (; !made_.empty(); made_.pop_back()) {
        auto gone = take_away(made_.back());
        if (!gone.has_value() && cleared.has_value()) {
          cleared = std::move(gone);
        }
      }
      FERRY_CHECK(std::move(made));
      return cleared;
    });
    FERRY_CHECK(std::move(made_all));
  }
  // By number, where our own procfs is.
  for (const ToFill& f : to_fill_) {
    FERRY_CHECK(ghost::fill(context.set, f.number, f.file->get(), f.name));
  }
  to_fill_.clear();
  return {};
}

Result<void> LostNames::make_all(const Inside* inside) {
  std::vector<const Object*> order;
  for (const auto& [number, object] : objects_) {
    if (object.inside == inside) {
      order.push_back(&object);
    }
  }
  // A deleted directory before what was in it.
  std::stable_sort(order.begin(), order.end(), [](const Object* a, const Object* b) {
    return depth_of(a->files.front()->name()) < depth_of(b->files.front()->name());
  });
  for (const Object* object : order) {
    FERRY_CHECK(object->ghost != nullptr && object->ghost->ferry_temporary() ? make_temporary(*object) : make(*object));
  }
  return {};
}

Result<void> LostNames::make_parents(const std::string& path) {
  for (std::size_t at = path.find('/', 1); at != std::string::npos; at = path.find('/', at + 1)) {
    const std::string directory = path.substr(0, at);
    struct stat st {};
    if (::stat(directory.c_str(), &st) == 0) {
      continue;
    }
    if (::mkdir(directory.c_str(), 0700) != 0) {
      return sys_fail(fmt::format("mkdir({})", directory));
    }
    made_.push_back({directory, "", true});
  }
  return {};
}

// One object under every name that a file of the set knows it by.
Result<void> LostNames::make(const Object& object) {
  std::map<std::string, std::shared_ptr<UniqueFd>> by_name;
  std::map<std::string, std::string> made_at;  // name: where it is for now
  std::shared_ptr<UniqueFd> first;
  std::string existing = object.helper;  // a name to link from
  for (const pb::RegFileEntry* reg : object.files) {
    auto& known = by_name[reg->name()];
    if (known == nullptr) {
      FERRY_CHECK(make_parents(reg->name()));
      const bool directory = object.ghost != nullptr && S_ISDIR(object.ghost->mode());
      const auto make_at = [&](const std::string& path) -> Result<void> {
        if (existing.empty()) {
          return ghost::make(*object.ghost, path);
        }
        if (::link(existing.c_str(), path.c_str()) != 0) {
          return sys_fail(fmt::format("link({}, {})", existing, path));
        }
        return {};
      };
      Made made{reg->name(), "", directory};
      auto done = make_at(made.path);
      if (!done.has_value() && done.error().os_errno == EEXIST) {
        made.wanted = reg->name();
        made.path = fmt::format("{}.cr.{:x}.ghost", reg->name(), object.number);
        done = make_at(made.path);
      }
      if (!done.has_value() && (done.error().os_errno == EXDEV || (directory && done.error().os_errno == EPERM))) {
        // The same file by way of another mount: what it is called there cannot be had again.
        if (first == nullptr) {
          FERRY_TRY(UniqueFd helper, open_path(existing));
          first = std::make_shared<UniqueFd>(std::move(helper));
        }
        known = first;
        found_[reg->id()] = known;
        continue;
      }
      FERRY_CHECK(std::move(done));
      made_.push_back(made);
      FERRY_TRY(UniqueFd fd, open_path(made.path));
      known = std::make_shared<UniqueFd>(std::move(fd));
      if (existing.empty()) {
        existing = made.path;
        to_fill_.push_back({object.number, known, reg->name()});
      }
      if (first == nullptr) {
        first = known;
      }
      made_at[reg->name()] = made.path;
    }
    found_[reg->id()] = known;
    if (const auto at = made_at.find(reg->name()); at != made_at.end() && needs_its_name(*reg, known->get())) {
      constexpr int kOnce = O_CREAT | O_EXCL | O_TRUNC;
      FERRY_TRY(first_[reg->id()], sys::open(at->second, (static_cast<int>(reg->flags()) & ~kOnce) | O_NOCTTY));
    }
  }
  return {};
}

// O_NOFOLLOW, which a link needs and shm_open(3) asks for, would mean the link of procfs if a file were opened by its
// number.
bool LostNames::needs_its_name(const pb::RegFileEntry& reg, int made) {
  struct stat st {};
  return (reg.flags() & O_PATH) != 0 ||
         ((reg.flags() & O_NOFOLLOW) != 0 && ::fstat(made, &st) == 0 && S_ISREG(st.st_mode));
}

// A file that open(2) made without a name can still be given one, so it is made the same way.
Result<void> LostNames::make_temporary(const Object& object) {
  const std::string& name = object.files.front()->name();
  const std::string directory = name.substr(0, std::max<std::size_t>(name.rfind('/'), 1));
  FERRY_CHECK(make_parents(name));
  const pb::RegFileEntry* maker = nullptr;
  for (const pb::RegFileEntry* reg : object.files) {
    if ((reg->flags() & O_TMPFILE) == O_TMPFILE) {
      maker = reg;
    }
  }
  const int flags = maker == nullptr ? O_TMPFILE | O_RDWR : static_cast<int>(maker->flags());
  FERRY_TRY(UniqueFd fd, sys::open(directory, flags, 0600).during("making unnamed file {} again", name));
  if (maker != nullptr) {
    FERRY_TRY(first_[maker->id()], sys::duplicate(fd.get()));
  }
  const auto shared = std::make_shared<UniqueFd>(std::move(fd));
  for (const pb::RegFileEntry* reg : object.files) {
    found_[reg->id()] = shared;
  }
  to_fill_.push_back({object.number, shared, name});
  return {};
}

Result<void> LostNames::take_away(const Made& made) {
  if (!made.wanted.empty() &&
      ::renameat2(AT_FDCWD, made.path.c_str(), AT_FDCWD, made.wanted.c_str(), RENAME_EXCHANGE) == 0) {
    // Ours has the wanted name now; the other one takes it back, and ours is gone by that.
    if (::rename(made.path.c_str(), made.wanted.c_str()) != 0) {
      return sys_fail(fmt::format("rename({}, {})", made.path, made.wanted));
    }
    return {};
  }
  if ((made.directory ? ::rmdir(made.path.c_str()) : ::unlink(made.path.c_str())) != 0) {
    return sys_fail(fmt::format("removing {}", made.path));
  }
  return {};
}

Result<UniqueFd> LostNames::open(RestoreContext& context, const pb::RegFileEntry& reg, int flags) {
  FERRY_CHECK(prepare(context));
  if (const auto pid = dead_pids_.find(reg.id()); pid != dead_pids_.end()) {
    FERRY_TRY(const pid_t there, dead_.make(context.root().pid, static_cast<pid_t>(pid->second)));
    const std::string path = proc_file::with_pid(reg.name(), static_cast<pid_t>(pid->second), there);
    FERRY_TRY(Inside* const inside, context.nested.inside_of_mount(context, reg.mnt_id()));
    return inside->get<UniqueFd>([&] { return sys::open(path, flags | O_NOCTTY); });
  }
  const auto found = found_.find(reg.id());
  if (found == found_.end()) {
    FERRY_TRY(Inside* const inside, context.nested.inside_of_mount(context, reg.mnt_id()));
    return inside->get<UniqueFd>([&] { return sys::open(reg.name(), flags | O_NOCTTY); });
  }
  if (const auto first = first_.find(reg.id()); first != first_.end()) {
    UniqueFd fd = std::move(first->second);
    first_.erase(first);
    return fd;
  }
  // Through the number, because there is no name.
  struct stat st {};
  const bool directory = ::fstat(found->second->get(), &st) == 0 && S_ISDIR(st.st_mode);
  const int meaningless = O_NOFOLLOW | O_CREAT | O_EXCL | O_TRUNC | (directory ? 0 : O_TMPFILE);
  return sys::open(by_number(found->second->get()), (flags & ~meaningless) | O_NOCTTY).during("{}", reg.name());
}

Result<std::vector<std::uint32_t>> LostNames::of_dead_processes(RestoreContext& context) {
  FERRY_CHECK(prepare(context));
  std::vector<std::uint32_t> out;
  for (const auto& [id, pid] : dead_pids_) {
    out.push_back(id);
  }
  return out;
}

Result<void> LostNames::remove_helper_links() {
  for (const auto& [number, object] : objects_) {
    if (object.helper.empty()) {
      continue;
    }
    FERRY_CHECK(object.inside->run([&, &helper = object.helper]() -> Result<void> {
      if (::unlink(helper.c_str()) != 0 && errno != ENOENT) {
        return sys_fail(fmt::format("unlink({})", helper));
      }
      return {};
    }));
  }
  return {};
}

}  // namespace ferry::state::files

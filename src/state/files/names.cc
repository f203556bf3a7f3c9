#include "state/files/names.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "image/proto/remap.pb.h"
#include "state/file_kind.h"
#include "state/files/ghost.h"
#include "state/proc_file/dead_process.h"
#include "sys/file.h"

namespace ferry::state::files {
namespace {

using image::Name;
using image::Type;

constexpr std::string_view kDeleted = " (deleted)";

bool cut_deleted(std::string& link) {
  if (link.size() > kDeleted.size() && link.ends_with(kDeleted)) {
    link.resize(link.size() - kDeleted.size());
    return true;
  }
  return false;
}

// open(2) with O_TMPFILE: the kernel calls the file by its inode number until it has a name.
bool is_temporary(const std::string& link, const struct stat& stat) {
  return S_ISREG(stat.st_mode) && link.ends_with(fmt::format("/#{}", stat.st_ino));
}

bool is_on_procfs(int fd) {
  struct statfs fs {};
  return ::fstatfs(fd, &fs) == 0 && fs.f_type == PROC_SUPER_MAGIC;
}

void add_remap(DumpContext& context, std::uint32_t id, pb::RemapType type, std::uint32_t to) {
  pb::RemapFilePathEntry remap;
  remap.set_orig_id(id);
  remap.set_remap_id(to);
  remap.set_remap_type(type);
  context.set.add(Name{Type::remap_fpath, 0}, std::move(remap));
}

}  // namespace

Names::~Names() {
  for (const HelperLink& link : links_) {
    ::unlinkat(link.directory.get(), link.name.c_str(), 0);
  }
}

Result<int> Names::root_of(DumpTask& task) {
  if (const auto known = root_of_task_.find(task.pid); known != root_of_task_.end()) {
    return known->second;
  }
  FERRY_TRY(const UniqueFd ns, sys::open_at(task.proc.get(), "ns/mnt", O_RDONLY));
  FERRY_TRY(const auto ns_stat, sys::stat_fd(ns.get(), "ns/mnt"));
  UniqueFd& root = roots_[ns_stat.st_ino];
  if (!root) {
    FERRY_TRY(const auto link, sys::read_link_at(task.proc.get(), "root"));
    if (link == "/") {
      FERRY_TRY(root, sys::open_at(task.proc.get(), "root", O_PATH | O_DIRECTORY));
    } else {
      // chroot(2) has changed what the task sees, not what its paths in procfs begin with.
      Inside inside;
      FERRY_CHECK(inside.enter_namespaces(task.pid));
      FERRY_TRY(root, inside.get<UniqueFd>([] { return sys::open("/", O_PATH | O_DIRECTORY); }));
    }
  }
  root_of_task_[task.pid] = root.get();
  return root.get();
}

Result<bool> Names::leads_to(DumpTask& task, const std::string& path, const struct stat& stat) {
  FERRY_TRY(const int root, root_of(task));
  const auto found = sys::open_in_root(root, path, O_PATH | O_NOFOLLOW);
  if (!found.has_value()) {
    return false;
  }
  FERRY_TRY(const auto there, sys::stat_fd(found->get(), path));
  return there.st_ino == stat.st_ino && there.st_dev == stat.st_dev;
}

Result<void> Names::describe(DumpContext& context, DumpTask& task, int ours, const struct stat& stat, std::string link,
                             const std::string& subject, pb::RegFileEntry& out) {
  if (link.empty() || link.front() != '/') {
    return fail(Kind::unsupported, "{}: ferry does not know this kind of file", subject);
  }
  out.set_mode(stat.st_mode);
  if (S_ISREG(stat.st_mode)) {
    out.set_size(static_cast<std::uint64_t>(stat.st_size));
  }
  const std::string shown = link;
  const bool said_deleted = cut_deleted(link);
  out.set_name(link);
  if (stat.st_nlink == 0) {
    return add_ghost(context, ours, stat, link, subject, out.id());
  }
  FERRY_TRY(const bool found, leads_to(task, link, stat));
  // A device is its number, under whatever name it was opened: a container's standard input is often the
  // /dev/null or the terminal of its host.  FIFOs and sockets may be the host's as well.
  const bool any_will_do = !S_ISREG(stat.st_mode) && !S_ISDIR(stat.st_mode) &&
                           (!said_deleted || S_ISCHR(stat.st_mode) || S_ISBLK(stat.st_mode));
  if (found || any_will_do) {
    return {};
  }
  // "(deleted)" may as well be the end of a name that exists.
  if (said_deleted) {
    FERRY_TRY(const bool whole, leads_to(task, shown, stat));
    if (whole) {
      out.set_name(shown);
      return {};
    }
  }
  if (is_on_procfs(ours)) {
    // Of a dead process; or one that depends on who looks it up (sysctls of namespaces), which has its name.
    const proc_file::Numbers numbers = proc_file::numbers_in(link);
    if (numbers.process) {
      const bool alive = std::any_of(context.tasks.begin(), context.tasks.end(), [&](const auto& other) {
        return other->ns_pid.value == static_cast<pid_t>(*numbers.process);
      });
      add_remap(context, out.id(), pb::REMAP_PROCFS,
                alive ? numbers.thread.value_or(*numbers.process) : *numbers.process);
    }
    return {};
  }
  return add_helper_link(context, task, ours, stat, link, subject, out);
}

Result<void> Names::add_ghost(DumpContext& context, int ours, const struct stat& stat, const std::string& link,
                              const std::string& subject, std::uint32_t id) {
  // One inode, one ghost: all its descriptions share it.
  std::uint32_t& number = ghosts_[{stat.st_dev, stat.st_ino}];
  if (number == 0) {
    number = static_cast<std::uint32_t>(ghosts_.size());
    FERRY_CHECK(ghost::save(context, ours, stat, number, is_temporary(link, stat), subject));
  }
  add_remap(context, id, pb::REMAP_GHOST, number);
  return {};
}

Result<void> Names::add_helper_link(DumpContext& context, DumpTask& task, int ours, const struct stat& stat,
                                    const std::string& link, const std::string& subject, pb::RegFileEntry& out) {
  if (S_ISDIR(stat.st_mode)) {
    return fail(Kind::unsupported, "{}: the directory is not where its path says (is something mounted over it?)",
                subject);
  }
  if (!context.options.link_remap) {
    return fail(
        Kind::unsupported,
        "{}: the name {} is gone or is another file now, but the file has further names; give --link-remap, which "
        "lets ferry add a helper name",
        subject, link);
  }
  std::uint32_t& helper = helpers_[{stat.st_dev, stat.st_ino}];
  if (helper == 0) {
    helper = context.files.next_id();
    FERRY_TRY(const std::string name, link_beside(task, ours, link, helper, subject));
    pb::FileEntry file;
    file.set_type(pb::FD_REG);
    file.set_id(helper);
    pb::RegFileEntry& reg = *file.mutable_reg();
    reg.set_id(helper);
    reg.set_flags(0);
    reg.set_pos(0);
    *reg.mutable_fown() = out.fown();
    reg.set_name(name);
    reg.set_mnt_id(out.mnt_id());
    context.set.add(Name{Type::files, 0}, std::move(file));
  }
  add_remap(context, out.id(), pb::REMAP_LINKED, helper);
  return {};
}

Result<std::string> Names::link_beside(DumpTask& task, int ours, const std::string& link, std::uint32_t number,
                                       const std::string& subject) {
  FERRY_TRY(const int root, root_of(task));
  // Its own directory may be gone as well: then the next one above that is there.
  for (std::string directory = link.substr(0, link.rfind('/'));; directory.resize(directory.rfind('/'))) {
    const std::string path = directory.empty() ? "/" : directory;
    auto opened = sys::open_in_root(root, path, O_PATH | O_DIRECTORY);
    if (opened.has_value()) {
      for (int attempt = 0; attempt < 100; ++attempt) {
        const std::string name =
            attempt == 0 ? fmt::format("link_remap.{}", number) : fmt::format("link_remap.{}.{}", number, attempt);
        if (::linkat(ours, "", opened->get(), name.c_str(), AT_EMPTY_PATH) == 0) {
          links_.push_back({std::move(*opened), name});
          return directory + "/" + name;
        }
        if (errno != EEXIST) {
          break;
        }
      }
      return sys_fail(fmt::format("adding a helper name in {} for {}", path, subject));
    }
    if (directory.empty()) {
      return Result<std::string>(tl::unexpected(std::move(opened).error())).during("a helper name for {}", subject);
    }
  }
}

}  // namespace ferry::state::files

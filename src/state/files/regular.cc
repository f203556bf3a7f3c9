#include "state/files/regular.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

#include "state/files/ghost.h"
#include "state/nested/nested.h"
#include "sys/file.h"

namespace ferry::state {
namespace regular {
namespace {

constexpr std::string_view kDeleted = " (deleted)";

bool cut_deleted(std::string& link) {
  if (link.size() > kDeleted.size() && link.ends_with(kDeleted)) {
    link.resize(link.size() - kDeleted.size());
    return true;
  }
  return false;
}

// Is it the same file that the path leads to, seen from the task's root?
Result<bool> path_leads_to(DumpTask& task, const std::string& path, const struct stat& stat) {
  FERRY_TRY(const UniqueFd root, sys::open_at(task.proc.get(), "root", O_PATH | O_DIRECTORY));
  const auto found = sys::open_in_root(root.get(), path, O_PATH | O_NOFOLLOW);
  if (!found.has_value()) {
    return false;
  }
  FERRY_TRY(const auto there, sys::stat_fd(found->get(), path));
  return there.st_ino == stat.st_ino && there.st_dev == stat.st_dev;
}

}  // namespace

Result<void> describe(DumpContext& context, DumpTask& task, int ours, const struct stat& stat, std::string link,
                      const std::string& subject, pb::RegFileEntry& out) {
  if (link.empty() || link.front() != '/') {
    return fail(Kind::unsupported, "{}: ferry does not know this kind of file", subject);
  }
  const bool said_deleted = cut_deleted(link);
  out.set_mode(stat.st_mode);
  if (S_ISREG(stat.st_mode)) {
    out.set_size(static_cast<std::uint64_t>(stat.st_size));
  }
  if (stat.st_nlink == 0) {
    FERRY_CHECK(ghost::collect(context, ours, stat, out.id(), subject));
  } else if (S_ISREG(stat.st_mode) || S_ISDIR(stat.st_mode)) {
    FERRY_TRY(const bool same, path_leads_to(task, link, stat));
    if (!same) {
      // "(deleted)" may as well be the end of a name that exists.
      const std::string whole = link + std::string(kDeleted);
      if (said_deleted && path_leads_to(task, whole, stat).value_or(false)) {
        link = whole;
      } else {
        return fail(Kind::unsupported,
                    "{}: the name {} is gone or is another file now, but the file has further names; "
                    "restoring it under another name is not supported",
                    subject, link);
      }
    }
  }
  out.set_name(link);
  return {};
}

}  // namespace regular

namespace {

class RegularFile final : public FileKind {
 public:
  [[nodiscard]] std::string_view name() const override { return "file"; }
  [[nodiscard]] pb::FdType type() const override { return pb::FD_REG; }

  [[nodiscard]] bool matches(const FdProbe& probe) const override {
    return S_ISREG(probe.stat.st_mode) || S_ISDIR(probe.stat.st_mode) || S_ISCHR(probe.stat.st_mode) ||
           ((probe.info.flags & O_PATH) != 0);
  }

  Result<void> collect(const FdProbe& probe, DumpContext& context, pb::FileEntry& out) override {
    pb::RegFileEntry& reg = *out.mutable_reg();
    reg.set_id(out.id());
    reg.set_flags(probe.status_flags());
    reg.set_pos(probe.info.pos);
    reg.set_mnt_id(probe.info.mnt_id);
    FERRY_CHECK(collect_fown(probe, context, *reg.mutable_fown()));
    return regular::describe(context, probe.task, probe.ours, probe.stat, probe.link, probe.subject(), reg);
  }

  Result<UniqueFd> open(const pb::FileEntry& entry, RestoreContext& context) override {
    const pb::RegFileEntry& reg = entry.reg();
    for (const InheritFd& inherited : context.options.inherit_fds) {
      if (reg.name().size() > 1 && inherited.key == std::string_view(reg.name()).substr(1)) {
        return sys::duplicate(inherited.fd);
      }
    }
    FERRY_TRY(const std::string path, ghosts_.path_for(context, reg.id(), reg.name()));
    FERRY_TRY(Inside* const inside, context.nested.inside_of_mount(context, reg.mnt_id()));
    FERRY_TRY(UniqueFd fd, inside->get<UniqueFd>([&] {
      return sys::open(path, static_cast<int>(reg.flags()) | O_NOCTTY);
    }));
    FERRY_CHECK(validate(reg, fd.get(), path, context.options));
    if ((reg.flags() & O_PATH) == 0) {
      if (reg.pos() != 0 && ::lseek(fd.get(), static_cast<off_t>(reg.pos()), SEEK_SET) < 0 && errno != ESPIPE) {
        return sys_fail(fmt::format("lseek({}, {})", path, reg.pos()));
      }
      FERRY_CHECK(restore_fown(fd.get(), reg.fown(), context));
    }
    return fd;
  }

  Result<void> connect(const pb::FileEntry&, int, RestoreContext& context) override {
    return ghosts_.remove(context);
  }

 private:
  // A file that changed since the checkpoint would be read as if it had not: mapped code above all.
  static Result<void> validate(const pb::RegFileEntry& reg, int fd, const std::string& path,
                               const RestoreOptions& options) {
    FERRY_TRY(const auto st, sys::stat_fd(fd, path));
    if (reg.has_mode() && (st.st_mode & S_IFMT) != (reg.mode() & S_IFMT)) {
      return fail(Kind::corrupt, "{} is not the kind of file that it was at the checkpoint", path);
    }
    if (reg.has_mode() && !options.skip_file_rwx_check && (st.st_mode & 0777) != (reg.mode() & 0777)) {
      return fail(Kind::corrupt, "{} has mode {:o}, at the checkpoint it had {:o}", path, st.st_mode & 0777,
                  reg.mode() & 0777);
    }
    if (reg.has_size() && S_ISREG(st.st_mode) && static_cast<std::uint64_t>(st.st_size) != reg.size()) {
      return fail(Kind::corrupt, "{} has {} bytes, at the checkpoint it had {}: put the same file back", path,
                  st.st_size, reg.size());
    }
    return {};
  }

  ghost::Ghosts ghosts_;
};

}  // namespace

std::unique_ptr<FileKind> make_regular_file_kind() { return std::make_unique<RegularFile>(); }

}  // namespace ferry::state

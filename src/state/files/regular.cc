#include "state/files/regular.h"

#include <fcntl.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <optional>

#include "state/files/build_id.h"
#include "sys/file.h"

namespace ferry::state {
namespace {

// What a device does is behind its number: only of these is nothing kept in the open file.
Result<void> check_device(const FdProbe& probe) {
  constexpr unsigned kMemory = 1;  // null, zero, full, random, urandom, kmsg (devices.txt of the kernel)
  const bool device = S_ISCHR(probe.stat.st_mode) || S_ISBLK(probe.stat.st_mode);
  if (!device || (probe.info.flags & O_PATH) != 0 ||
      (S_ISCHR(probe.stat.st_mode) && major(probe.stat.st_rdev) == kMemory)) {
    return {};
  }
  return fail(Kind::unsupported, "{}: an open {} device ({}:{}) cannot be carried over, what it holds is not known",
              probe.subject(), S_ISCHR(probe.stat.st_mode) ? "character" : "block", major(probe.stat.st_rdev),
              minor(probe.stat.st_rdev));
}

class RegularFile final : public FileKind {
 public:
  [[nodiscard]] std::string_view name() const override { return "file"; }
  [[nodiscard]] pb::FdType type() const override { return pb::FD_REG; }

  [[nodiscard]] bool matches(const FdProbe& probe) const override {
    return S_ISREG(probe.stat.st_mode) || S_ISDIR(probe.stat.st_mode) || S_ISCHR(probe.stat.st_mode) ||
           S_ISBLK(probe.stat.st_mode) || ((probe.info.flags & O_PATH) != 0);
  }

  Result<void> collect(const FdProbe& probe, DumpContext& context, pb::FileEntry& out) override {
    FERRY_CHECK(check_device(probe));
    pb::RegFileEntry& reg = *out.mutable_reg();
    reg.set_id(out.id());
    reg.set_flags(probe.status_flags());
    reg.set_pos(probe.info.pos);
    reg.set_mnt_id(probe.info.mnt_id);
    FERRY_CHECK(collect_fown(probe, context, *reg.mutable_fown()));
    return context.files.describe(context, probe.task, probe.ours, probe.stat, probe.link, probe.subject(), reg);
  }

  Result<UniqueFd> open(const pb::FileEntry& entry, RestoreContext& context) override {
    const pb::RegFileEntry& reg = entry.reg();
    if (const auto inherited = inherited_fd(reg, context.options)) {
      return sys::duplicate(*inherited);
    }
    FERRY_TRY(UniqueFd fd, context.files.open_path(reg, static_cast<int>(reg.flags())));
    FERRY_CHECK(validate(reg, fd.get(), context.options));
    if ((reg.flags() & O_PATH) == 0) {
      if (reg.pos() != 0 && ::lseek(fd.get(), static_cast<off_t>(reg.pos()), SEEK_SET) < 0 && errno != ESPIPE) {
        return sys_fail(fmt::format("lseek({}, {})", reg.name(), reg.pos()));
      }
      FERRY_CHECK(restore_fown(fd.get(), reg.fown(), context));
    }
    return fd;
  }

 private:
  static std::optional<int> inherited_fd(const pb::RegFileEntry& reg, const RestoreOptions& options) {
    for (const InheritFd& inherited : options.inherit_fds) {
      if (reg.name().size() > 1 && inherited.key == std::string_view(reg.name()).substr(1)) {
        return inherited.fd;
      }
    }
    return std::nullopt;
  }

  // A file that changed since the checkpoint would be read as if it had not: mapped code above all.
  static Result<void> validate(const pb::RegFileEntry& reg, int fd, const RestoreOptions& options) {
    const std::string& path = reg.name();
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
    if (reg.build_id_size() > 0 && options.file_validation == FileValidation::build_id && S_ISREG(st.st_mode)) {
      FERRY_TRY(const auto now, files::read_build_id(fd));
      if (!now.empty() && !std::equal(now.begin(), now.end(), reg.build_id().begin(), reg.build_id().end())) {
        return fail(Kind::corrupt, "{} has another build-id than at the checkpoint: put the same file back", path);
      }
    }
    return {};
  }
};

}  // namespace

std::unique_ptr<FileKind> make_regular_file_kind() { return std::make_unique<RegularFile>(); }

}  // namespace ferry::state

#include "state/fanotify/fanotify.h"

#include <fcntl.h>
#include <sys/fanotify.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "state/inotify/inotify.h"
#include "state/inotify/watched_file.h"
#include "sys/file.h"

namespace ferry::state {
namespace {

constexpr std::uint32_t kIgnore = 0x400;      // FAN_MARK_IGNORE, Linux 6.0
constexpr std::uint32_t kFilesystem = 0x100;  // FAN_MARK_FILESYSTEM
constexpr std::string_view kLink = "anon_inode:[fanotify]";

class FanotifyKind : public FileKind {
 public:
  [[nodiscard]] std::string_view name() const override { return "fanotify group"; }
  [[nodiscard]] pb::FdType type() const override { return pb::FD_FANOTIFY; }
  [[nodiscard]] bool matches(const FdProbe& probe) const override { return probe.link == kLink; }

  void prepare(int proc, int fd, const std::string& link) override {
    if (link != kLink) {
      return;
    }
    const auto text = sys::read_file_at(proc, fmt::format("fdinfo/{}", fd));
    const auto info = text.has_value() ? sys::parse_fdinfo(*text) : Result<sys::FdInfo>();
    if (info.has_value()) {
      for (const auto& [key, value] : info->rest) {
        if (const auto watch = key == "fanotify ino" ? parse_watch("0 ino:" + value) : std::nullopt) {
          (void)finder_.find(proc, *watch, link);
        }
      }
    }
  }

  Result<void> collect(const FdProbe& probe, DumpContext& context, pb::FileEntry& out) override {
    int unread = 0;
    if (::ioctl(probe.ours, FIONREAD, &unread) != 0) {
      return sys_fail(fmt::format("ioctl({}, FIONREAD)", probe.subject()));
    }
    if (unread > 0) {
      return fail(Kind::unsupported,
                  "{}: it has events that were not read yet, which only the kernel could make; try again",
                  probe.subject());
    }
    pb::FanotifyFileEntry& entry = *out.mutable_ffy();
    entry.set_id(out.id());
    entry.set_flags(probe.status_flags());
    entry.set_faflags(0);
    entry.set_evflags(0);
    for (const auto& [key, value] : probe.info.rest) {
      if (key == "fanotify flags") {
        const auto flags = fanotify::hex_field("flags:" + value, "flags:");
        const auto events = fanotify::hex_field(value, " event-flags:");
        if (!flags || !events) {
          return fail(Kind::corrupt, "{}: fdinfo has \"{}:{}\"", probe.subject(), key, value);
        }
        entry.set_faflags(*flags);
        entry.set_evflags(*events);
      } else if (key.starts_with("fanotify ")) {
        FERRY_CHECK(add_mark(probe, key, value, *entry.add_mark()));
      }
    }
    return collect_fown(probe, context, *entry.mutable_fown());
  }

  Result<UniqueFd> open(const pb::FileEntry& file, RestoreContext&) override {
    const pb::FanotifyFileEntry& entry = file.ffy();
    UniqueFd fd(::fanotify_init((entry.faflags() & ~std::uint32_t{FAN_NONBLOCK}) | FAN_CLOEXEC, entry.evflags()));
    if (!fd) {
      return sys_fail(fmt::format("fanotify_init({:#x}, {:#x})", entry.faflags(), entry.evflags()));
    }
    FERRY_CHECK(restore_status_flags(fd.get(), entry.flags()));
    return fd;
  }

  Result<void> connect(const pb::FileEntry& file, int fd, RestoreContext& context) override {
    return restore_fown(fd, file.ffy().fown(), context);
  }

  // Last of all: what the restore itself does to files must not be reported, let alone wait for an answer.
  Result<void> complete(RestoreContext& context) override {
    for (const auto* file : context.set.list<pb::FileEntry>({image::Type::files})) {
      if (!file->has_ffy()) {
        continue;
      }
      FERRY_TRY(const int fd, context.files.get(file->id()));
      for (const pb::FanotifyMarkEntry& mark : file->ffy().mark()) {
        FERRY_CHECK(put_mark(fd, mark, context).during("fanotify group {}", file->id()));
      }
    }
    return {};
  }

 private:
  Result<void> add_mark(const FdProbe& probe, const std::string& key, const std::string& value,
                        pb::FanotifyMarkEntry& out) {
    const auto flags = fanotify::hex_field(value, " mflags:"), mask = fanotify::hex_field(value, " mask:");
    const auto ignored = fanotify::hex_field(value, " ignored_mask:");
    const auto first = fanotify::hex_field("x:" + value, "x:");
    const int proc = probe.task.proc.get();
    if (!flags || !mask || !ignored || !first) {
      return fail(Kind::corrupt, "{}: fdinfo has \"{}:{}\"", probe.subject(), key, value);
    }
    out.set_id(0);
    out.set_mflags(*flags);
    out.set_mask(*mask);
    out.set_ignored_mask(*ignored);
    out.set_s_dev(fanotify::hex_field(value, " sdev:").value_or(0));
    if (key == "fanotify ino") {
      const auto watch = parse_watch("0 ino:" + value);
      if (!watch) {
        return fail(Kind::corrupt, "{}: fdinfo has \"{}:{}\"", probe.subject(), key, value);
      }
      FERRY_TRY(const inotify::Found found, finder_.find(proc, *watch, probe.subject()));
      if (found.gone) {
        return fail(Kind::unsupported, "{}: it has a mark on a control group or device that was removed",
                    probe.subject());
      }
      if (found.nameless) {
        return fail(Kind::unsupported, "{}: it has a mark on {}, which has no name any more", probe.subject(),
                    found.path);
      }
      out.set_type(pb::MARK_INODE);
      out.mutable_ie()->set_i_ino(watch->inode);
      put_handle(*watch, found.path, *out.mutable_ie()->mutable_f_handle());
      return {};
    }
    if (key != "fanotify mnt_id" && key != "fanotify sdev") {
      return fail(Kind::unsupported, "{}: a mark of a kind (\"{}\") that ferry does not know", probe.subject(), key);
    }
    out.set_type(pb::MARK_MOUNT);
    pb::FanotifyMountMarkEntry& mount = *out.mutable_me();
    const bool filesystem = key == "fanotify sdev";
    mount.set_mnt_id(filesystem ? 0 : *first);
    if (filesystem) {
      out.set_s_dev(*first);
      mount.set_ferry_filesystem(true);
    }
    FERRY_TRY(const std::string path, filesystem ? finder_.mountpoint_of(proc, *first, probe.subject())
                                                 : finder_.mountpoint(proc, static_cast<int>(*first), probe.subject()));
    mount.set_path(path);
    return {};
  }

  static Result<void> put_mark(int fd, const pb::FanotifyMarkEntry& mark, RestoreContext& context) {
    const bool inode = mark.type() == pb::MARK_INODE;
    if (inode ? !mark.ie().f_handle().has_path() : !mark.me().has_path()) {
      return fail(Kind::unsupported, "a mark has no path");
    }
    const std::string& path = inode ? mark.ie().f_handle().path() : mark.me().path();
    FERRY_TRY(const UniqueFd target,
              context.inside.get<UniqueFd>([&] { return sys::open(path, O_PATH | O_NOFOLLOW); }));
    const std::string by_number = fmt::format("/proc/self/fd/{}", target.get());
    const std::uint32_t where = inode ? 0 : mark.me().ferry_filesystem() ? kFilesystem : std::uint32_t{FAN_MARK_MOUNT};
    const auto put = [&](std::uint32_t flags, std::uint32_t mask) -> Result<void> {
      if (mask != 0 && ::fanotify_mark(fd, FAN_MARK_ADD | where | flags, mask, AT_FDCWD, by_number.c_str()) != 0) {
        return sys_fail(fmt::format("fanotify_mark({:#x}, {:#x}, {})", where | flags, mask, path));
      }
      return {};
    };
    const std::uint32_t ignoring = mark.mflags() & (FAN_MARK_IGNORED_SURV_MODIFY | kIgnore);
    FERRY_CHECK(put(mark.mflags() & ~ignoring, mark.mask()));
    return put(ignoring | ((mark.mflags() & kIgnore) != 0 ? 0U : std::uint32_t{FAN_MARK_IGNORED_MASK}),
               mark.ignored_mask());
  }

  inotify::PathFinder finder_;
};

}  // namespace

std::optional<std::uint32_t> fanotify::hex_field(std::string_view text, std::string_view key) {
  const auto at = text.find(key);
  if (at == std::string_view::npos) {
    return std::nullopt;
  }
  const auto rest = text.substr(at + key.size());
  const auto number = sys::parse_number(rest.substr(0, rest.find(' ')), 16);
  return number && *number <= 0xffffffff ? std::optional(static_cast<std::uint32_t>(*number)) : std::nullopt;
}

std::unique_ptr<FileKind> make_fanotify_kind() { return std::make_unique<FanotifyKind>(); }

}  // namespace ferry::state

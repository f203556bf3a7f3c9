#include "state/inotify/inotify.h"

#include <fcntl.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <optional>

#include "base/log.h"
#include "state/inotify/overflow.h"
#include "state/inotify/watched_file.h"
#include "sys/file.h"

namespace ferry::state {
namespace {

constexpr std::uint32_t kMostTries = 1 << 20;  // to reach a watch descriptor

class InotifyKind : public FileKind {
 public:
  [[nodiscard]] std::string_view name() const override { return "inotify"; }
  [[nodiscard]] pb::FdType type() const override { return pb::FD_INOTIFY; }
  [[nodiscard]] bool matches(const FdProbe& probe) const override { return probe.link == "anon_inode:inotify"; }

  void prepare(int proc, int fd, const std::string& link) override {
    if (link != "anon_inode:inotify") {
      return;
    }
    const auto text = sys::read_file_at(proc, fmt::format("fdinfo/{}", fd));
    const auto info = text.has_value() ? sys::parse_fdinfo(*text) : Result<sys::FdInfo>();
    const auto watches = info.has_value() ? parse_inotify(*info) : Result<std::vector<InotifyWatch>>();
    for (const InotifyWatch& watch : watches.has_value() ? *watches : std::vector<InotifyWatch>()) {
      (void)finder_.find(proc, watch, link);  // in the freeze it counts
    }
  }

  Result<void> collect(const FdProbe& probe, DumpContext& context, pb::FileEntry& out) override {
    int unread = 0;
    if (::ioctl(probe.ours, FIONREAD, &unread) != 0) {
      return sys_fail(fmt::format("ioctl({}, FIONREAD)", probe.subject()));
    }
    pb::InotifyFileEntry& entry = *out.mutable_ify();
    if (unread > 0) {
      // Only the kernel makes events.  For those that are lost it has a word of its own, IN_Q_OVERFLOW
      // (inotify(7)), at which a program looks at its files anew.
      log::info("{}: {} bytes of unread events come back as an overflow", probe.subject(), unread);
      entry.set_ferry_overflow(true);
    }
    entry.set_id(out.id());
    entry.set_flags(probe.status_flags());
    FERRY_TRY(const auto watches, parse_inotify(probe.info).during("{}", probe.subject()));
    for (const InotifyWatch& watch : watches) {
      FERRY_TRY(const inotify::Found found, finder_.find(probe.task.proc.get(), watch, probe.subject()));
      const std::string& path = found.path;
      pb::InotifyWdEntry& wd = *entry.add_wd();
      if (found.nameless) {
        FERRY_TRY(const std::uint32_t file,
                  context.files.add_path(context, probe.task, found.nameless.get(), path, O_RDONLY));
        wd.set_ferry_file(file);
      }
      if (found.gone) {
        wd.set_ferry_gone(true);
      }
      wd.set_id(0);
      wd.set_i_ino(watch.inode);
      wd.set_mask(watch.mask);
      wd.set_ignored_mask(0);
      wd.set_s_dev(watch.dev);
      wd.set_wd(watch.wd);
      put_handle(watch, path, *wd.mutable_f_handle());
    }
    return collect_fown(probe, context, *entry.mutable_fown());
  }

  Result<UniqueFd> open(const pb::FileEntry& file, RestoreContext&) override {
    UniqueFd fd(::inotify_init1(IN_CLOEXEC));
    if (!fd) {
      return sys_fail("inotify_init1");
    }
    FERRY_CHECK(restore_status_flags(fd.get(), file.ify().flags()));
    return fd;
  }

  // Late: what the restore itself does to files must not be reported.
  Result<void> connect(const pb::FileEntry& file, int fd, RestoreContext& context) override {
    const pb::InotifyFileEntry& entry = file.ify();
    // The kernel numbers watches upwards and does not use a number again, so they are made in order.
    std::vector<const pb::InotifyWdEntry*> watches;
    for (const pb::InotifyWdEntry& wd : entry.wd()) {
      watches.push_back(&wd);
    }
    std::sort(watches.begin(), watches.end(), [](const auto* a, const auto* b) { return a->wd() < b->wd(); });
    for (const pb::InotifyWdEntry* wd : watches) {
      if (wd->ferry_gone()) {
        // A number is not given twice.  To whoever still has it that watch is one of those which the kernel itself
        // has removed.
        FERRY_TRY(const UniqueFd target, sys::open("/", O_PATH | O_DIRECTORY));
        FERRY_CHECK(add(fd, target.get(), *wd));
        if (::inotify_rm_watch(fd, static_cast<int>(wd->wd())) != 0) {
          return sys_fail("inotify_rm_watch()");
        }
        continue;
      }
      if (wd->has_ferry_file()) {
        FERRY_TRY(const int target, context.files.get(wd->ferry_file()));
        FERRY_CHECK(add(fd, target, *wd));
        continue;
      }
      if (!wd->f_handle().has_path()) {
        return fail(Kind::unsupported, "inotify {}: watch {} has no path", entry.id(), wd->wd());
      }
      FERRY_TRY(const UniqueFd target,
                context.inside.get<UniqueFd>([&] { return sys::open(wd->f_handle().path(), O_PATH | O_NOFOLLOW); }));
      FERRY_CHECK(add(fd, target.get(), *wd));
    }
    FERRY_CHECK(drain(fd));
    if (entry.ferry_overflow()) {
      FERRY_CHECK(inotify::make_overflow(fd).during("inotify {}", entry.id()));
    }
    return restore_fown(fd, entry.fown(), context);
  }

 private:
  static Result<void> add(int fd, int target, const pb::InotifyWdEntry& wd) {
    const std::string path = fmt::format("/proc/self/fd/{}", target);
    for (std::uint32_t tries = 0; tries < kMostTries; ++tries) {
      const int got = ::inotify_add_watch(fd, path.c_str(), wd.mask());
      if (got < 0) {
        return sys_fail(fmt::format("inotify_add_watch({})", wd.f_handle().path()));
      }
      if (static_cast<std::uint32_t>(got) == wd.wd()) {
        return {};
      }
      if (static_cast<std::uint32_t>(got) > wd.wd() || ::inotify_rm_watch(fd, got) != 0) {
        break;
      }
    }
    return fail(Kind::unsupported, "the watch of {} had number {}, which cannot be reached", wd.f_handle().path(),
                wd.wd());
  }

  // Removing a watch leaves an IN_IGNORED event.
  static Result<void> drain(int fd) {
    alignas(inotify_event) char room[16384];
    int unread = 0;
    while (::ioctl(fd, FIONREAD, &unread) == 0 && unread > 0) {
      if (::read(fd, room, sizeof room) < 0) {
        return sys_fail("read(inotify)");
      }
    }
    return {};
  }

  inotify::PathFinder finder_;  // checkpoint
};

}  // namespace

// "1 ino:3c51a sdev:fe00000 mask:2 ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:1ac50300…"
std::optional<InotifyWatch> parse_watch(std::string_view text) {
  const auto field = [&](std::string_view label) -> std::optional<std::string_view> {
    const auto at = text.find(label);
    if (at == std::string_view::npos) {
      return std::nullopt;
    }
    const auto rest = text.substr(at + label.size());
    return rest.substr(0, rest.find(' '));
  };
  const auto number = [&](std::string_view label) -> std::optional<std::uint64_t> {
    const auto word = field(label);
    return word ? sys::parse_number(*word, 16) : std::nullopt;
  };
  const auto wd = sys::parse_number(text.substr(0, text.find(' ')), 16);
  const auto inode = number(" ino:"), dev = number(" sdev:"), mask = number(" mask:");
  if (!wd || *wd > 0x7fffffff || !inode || !dev || *dev > 0xffffffff || !mask || *mask > 0xffffffff) {
    return std::nullopt;
  }
  InotifyWatch watch{static_cast<std::uint32_t>(*wd),   *inode, static_cast<std::uint32_t>(*dev),
                     static_cast<std::uint32_t>(*mask), 0,      {}};
  // Without CONFIG_EXPORTFS there is no handle.
  watch.handle_type = static_cast<std::uint32_t>(number(" fhandle-type:").value_or(0));
  const std::string_view hex = field(" f_handle:").value_or("");
  for (std::size_t i = 0; i + 1 < hex.size(); i += 2) {
    const auto byte = sys::parse_number(hex.substr(i, 2), 16);
    if (!byte) {
      return std::nullopt;
    }
    watch.handle.push_back(static_cast<unsigned char>(*byte));
  }
  return watch;
}

void put_handle(const InotifyWatch& watch, const std::string& path, pb::FhEntry& out) {
  constexpr std::size_t kWords = 16;  // of FhEntry.handle
  out.set_bytes(static_cast<std::uint32_t>(watch.handle.size()));
  out.set_type(watch.handle_type);
  for (std::size_t word = 0; word < kWords; ++word) {
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < sizeof value && word * sizeof value + i < watch.handle.size(); ++i) {
      value |= std::uint64_t{watch.handle[word * sizeof value + i]} << (8 * i);
    }
    out.add_handle(value);
  }
  out.set_path(path);
}

Result<std::vector<InotifyWatch>> parse_inotify(const sys::FdInfo& info) {
  std::vector<InotifyWatch> out;
  for (const auto& [key, value] : info.rest) {
    if (key != "inotify wd") {
      continue;
    }
    auto watch = parse_watch(value);
    if (!watch) {
      return fail(Kind::corrupt, "fdinfo of an inotify descriptor has the line \"inotify wd:{}\"", value);
    }
    out.push_back(std::move(*watch));
  }
  return out;
}

std::unique_ptr<FileKind> make_inotify_kind() { return std::make_unique<InotifyKind>(); }

}  // namespace ferry::state

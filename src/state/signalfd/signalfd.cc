#include "state/signalfd/signalfd.h"

#include <sys/signalfd.h>
#include <sys/syscall.h>

namespace ferry::state {
namespace {

class SignalfdKind : public FileKind {
 public:
  [[nodiscard]] std::string_view name() const override { return "signalfd"; }
  [[nodiscard]] pb::FdType type() const override { return pb::FD_SIGNALFD; }
  [[nodiscard]] bool matches(const FdProbe& probe) const override { return probe.link == "anon_inode:[signalfd]"; }

  // proc(5), fdinfo: the mask in hexadecimal, bit 0 for signal 1.
  Result<void> collect(const FdProbe& probe, DumpContext& context, pb::FileEntry& out) override {
    pb::SignalfdEntry& entry = *out.mutable_sgfd();
    const auto text = probe.info.get("sigmask");
    const auto mask = text ? sys::parse_number(*text, 16) : std::nullopt;
    if (!mask) {
      return fail(Kind::corrupt, "{}: no sigmask in its fdinfo", probe.subject());
    }
    entry.set_id(out.id());
    entry.set_flags(probe.status_flags());
    entry.set_signal_mask(*mask);
    return collect_fown(probe, context, *entry.mutable_fown());
  }

  Result<UniqueFd> open(const pb::FileEntry& file, RestoreContext&) override {
    const pb::SignalfdEntry& entry = file.sgfd();
    // The system call itself: the kernel's signal set has 8 bytes, the C library's 128.
    const std::uint64_t mask = entry.signal_mask();
    UniqueFd fd(static_cast<int>(::syscall(SYS_signalfd4, -1, &mask, sizeof mask, SFD_CLOEXEC)));
    if (!fd) {
      return sys_fail(fmt::format("signalfd4(mask {:#x})", mask));
    }
    FERRY_CHECK(restore_status_flags(fd.get(), entry.flags()));
    return fd;
  }

  Result<void> connect(const pb::FileEntry& file, int fd, RestoreContext& context) override {
    return restore_fown(fd, file.sgfd().fown(), context);
  }
};

}  // namespace

std::unique_ptr<FileKind> make_signalfd_kind() { return std::make_unique<SignalfdKind>(); }

}  // namespace ferry::state

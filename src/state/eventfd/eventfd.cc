#include "state/eventfd/eventfd.h"

#include <sys/eventfd.h>

#include "sys/file.h"

namespace ferry::state {
namespace {

class EventfdKind : public FileKind {
 public:
  [[nodiscard]] std::string_view name() const override { return "eventfd"; }
  [[nodiscard]] pb::FdType type() const override { return pb::FD_EVENTFD; }
  [[nodiscard]] bool matches(const FdProbe& probe) const override { return probe.link == "anon_inode:[eventfd]"; }

  // Documentation/filesystems/proc.rst, "Eventfd files": the counter in hexadecimal.
  Result<void> collect(const FdProbe& probe, DumpContext& context, pb::FileEntry& out) override {
    pb::EventfdFileEntry& entry = *out.mutable_efd();
    const auto text = probe.info.get("eventfd-count");
    const auto count = text ? sys::parse_number(*text, 16) : std::nullopt;
    if (!count) {
      return fail(Kind::corrupt, "{}: no eventfd-count in its fdinfo", probe.subject());
    }
    entry.set_id(out.id());
    entry.set_flags(probe.status_flags());
    entry.set_counter(*count);
    // fdinfo has this line since Linux 6.5.  On older kernels the kind of counter can be found out only
    // by a read that takes from it; such an eventfd is then carried as a plain one, as CRIU does.
    if (const auto semaphore = probe.info.get("eventfd-semaphore"); semaphore && *semaphore != "0") {
      entry.set_ferry_semaphore(true);
    }
    return collect_fown(probe, context, *entry.mutable_fown());
  }

  Result<UniqueFd> open(const pb::FileEntry& file, RestoreContext&) override {
    const pb::EventfdFileEntry& entry = file.efd();
    // The first argument of eventfd(2) has 32 bits, the counter 64.
    UniqueFd fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK | (entry.ferry_semaphore() ? EFD_SEMAPHORE : 0)));
    if (!fd) {
      return sys_fail("eventfd");
    }
    if (entry.counter() != 0) {
      const std::uint64_t counter = entry.counter();
      FERRY_CHECK(sys::write_all(fd.get(), &counter, sizeof counter, fmt::format("eventfd {}", entry.id())));
    }
    FERRY_CHECK(restore_status_flags(fd.get(), entry.flags()));
    return fd;
  }

  Result<void> connect(const pb::FileEntry& file, int fd, RestoreContext& context) override {
    return restore_fown(fd, file.efd().fown(), context);
  }
};

}  // namespace

std::unique_ptr<FileKind> make_eventfd_kind() { return std::make_unique<EventfdKind>(); }

}  // namespace ferry::state

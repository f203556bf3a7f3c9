#include "sys/missing_pages.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

namespace ferry::sys {
namespace {

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kEvents =
    UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP;

#ifdef USERFAULTFD_IOC_NEW
static_assert(USERFAULTFD_IOC_NEW == kNewUserfaultfd);
#endif

// What ioctl_userfaultfd(2) says of UFFDIO_COPY and UFFDIO_ZEROPAGE: the number of bytes, or a negated errno for
// the first page.
Result<Filled> outcome(int result, std::int64_t told, std::uint64_t wanted, const char* call) {
  const int error = errno;
  if (result == 0) {
    return Filled{wanted, Fill::done};
  }
  if (told > 0) {  // a part: the next try tells why
    return Filled{static_cast<std::uint64_t>(told), Fill::done};
  }
  switch (told < 0 ? static_cast<int>(-told) : error) {
    case EAGAIN:
      return Filled{0, Fill::busy};
    case EEXIST:
      return Filled{0, Fill::there};
    case ENOENT:
      return Filled{0, Fill::unmapped};
    case EFAULT:
      return Filled{0, Fill::unreadable};
    case ESRCH:
    case ENOSPC:  // Linux 4.11 to 4.13
      return Filled{0, Fill::gone};
    default:
      return sys_fail(told < 0 ? static_cast<int>(-told) : error, call);
  }
}

}  // namespace

Result<void> missing_negotiate(int uffd) {
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = kEvents;
  if (::ioctl(uffd, UFFDIO_API, &api) != 0) {
    if (errno == EINVAL) {
      return fail(Kind::unsupported,
                  "this kernel's userfaultfd does not tell of forks, moves and unmappings (Linux 4.11)");
    }
    return sys_fail("ioctl(UFFDIO_API)");
  }
  return {};
}

Result<void> missing_register(int uffd, std::uint64_t start, std::uint64_t end) {
  uffdio_register range{};
  range.range = {start, end - start};
  range.mode = UFFDIO_REGISTER_MODE_MISSING;
  if (::ioctl(uffd, UFFDIO_REGISTER, &range) == 0) {
    return {};
  }
  Result<void> failed = sys_fail(fmt::format("ioctl(UFFDIO_REGISTER, {:#x}-{:#x})", start, end));
  if (failed.error().os_errno == EINVAL || failed.error().os_errno == EBUSY || failed.error().os_errno == EPERM) {
    failed.error().kind = Kind::unsupported;
  }
  return failed;
}

Result<std::optional<MissingEvent>> missing_read(int uffd) {
  uffd_msg message{};
  ssize_t n = 0;
  do {
    n = ::read(uffd, &message, sizeof message);
  } while (n < 0 && errno == EINTR);
  if (n < 0 && errno == EAGAIN) {
    return std::optional<MissingEvent>();
  }
  if (n != sizeof message) {
    return sys_fail("read(userfaultfd)");
  }
  MissingEvent event;
  switch (message.event) {
    case UFFD_EVENT_PAGEFAULT:
      event.what = MissingEvent::What::fault;
      event.start = message.arg.pagefault.address & ~(kPage - 1);
      event.end = event.start + kPage;
      break;
    case UFFD_EVENT_FORK:
      event.what = MissingEvent::What::fork;
      event.child = UniqueFd(static_cast<int>(message.arg.fork.ufd));
      break;
    case UFFD_EVENT_REMAP:
      event.what = MissingEvent::What::remap;
      event.start = message.arg.remap.from;
      event.end = message.arg.remap.from + message.arg.remap.len;
      event.to = message.arg.remap.to;
      break;
    case UFFD_EVENT_REMOVE:
    case UFFD_EVENT_UNMAP:
      event.what = message.event == UFFD_EVENT_REMOVE ? MissingEvent::What::remove : MissingEvent::What::unmap;
      event.start = message.arg.remove.start;
      event.end = message.arg.remove.end;
      break;
    default:
      return fail(Kind::os, "read(userfaultfd) gave an event {:#x} that was not asked for", message.event);
  }
  return event;
}

Result<Filled> missing_copy(int uffd, std::uint64_t to, const std::byte* from, std::uint64_t bytes) {
  uffdio_copy copy{};
  copy.dst = to;
  copy.src = reinterpret_cast<std::uint64_t>(from);
  copy.len = bytes;
  const int result = ::ioctl(uffd, UFFDIO_COPY, &copy);
  return outcome(result, copy.copy, bytes, "ioctl(UFFDIO_COPY)");
}

Result<Filled> missing_zero(int uffd, std::uint64_t to, std::uint64_t bytes) {
  uffdio_zeropage zero{};
  zero.range = {to, bytes};
  const int result = ::ioctl(uffd, UFFDIO_ZEROPAGE, &zero);
  return outcome(result, zero.zeropage, bytes, "ioctl(UFFDIO_ZEROPAGE)");
}

Result<void> missing_wake(int uffd, std::uint64_t start, std::uint64_t bytes) {
  uffdio_range range{start, bytes};
  if (::ioctl(uffd, UFFDIO_WAKE, &range) != 0) {
    return sys_fail("ioctl(UFFDIO_WAKE)");
  }
  return {};
}

Result<bool> has_missing_pages() {
  const UniqueFd uffd{static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK))};
  if (!uffd) {
    return errno == ENOSYS || errno == EPERM ? Result<bool>(false) : Result<bool>(sys_fail("userfaultfd()"));
  }
  const auto negotiated = missing_negotiate(uffd.get());
  if (!negotiated.has_value() && negotiated.error().kind != Kind::unsupported) {
    return tl::unexpected<Error>(negotiated.error());
  }
  return negotiated.has_value();
}

Result<UniqueFd> open_userfaultfd_device() {
  UniqueFd device{::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC)};
  // EPERM: runc has put us into the container's device cgroup, which has no such device.
  if (!device && errno != ENOENT && errno != ENXIO && errno != ENODEV && errno != EPERM) {
    return sys_fail("open(/dev/userfaultfd)");
  }
  return device;
}

}  // namespace ferry::sys

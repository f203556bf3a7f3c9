#include "sys/userfaultfd.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

namespace ferry::sys {
namespace {

// linux/userfaultfd.h of 6.4 and 6.7; older headers lack them.
constexpr std::uint64_t kHugetlbAndShmem = 1 << 12;
constexpr std::uint64_t kUnpopulated = 1 << 13;
constexpr std::uint64_t kAsync = 1 << 15;

}  // namespace

Result<void> uffd_negotiate(int uffd) {
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | kHugetlbAndShmem | kUnpopulated | kAsync;
  if (::ioctl(uffd, UFFDIO_API, &api) != 0) {
    if (errno == EINVAL) {
      return fail(Kind::unsupported, "this kernel has no asynchronous write protection (Linux 6.7)");
    }
    return sys_fail("ioctl(UFFDIO_API)");
  }
  return {};
}

namespace {

// Whether the address space that made the descriptor still exists.  UFFDIO_REGISTER tells of its end as of a
// lack of memory, UFFDIO_WRITEPROTECT by ESRCH (fs/userfaultfd.c).
bool is_alive(int uffd, std::uint64_t start, std::uint64_t end) {
  uffdio_writeprotect clear{};
  clear.range = {start, end - start};
  return ::ioctl(uffd, UFFDIO_WRITEPROTECT, &clear) == 0 || errno != ESRCH;
}

}  // namespace

Result<void> uffd_watch(int uffd, std::uint64_t start, std::uint64_t end) {
  uffdio_register watch{};
  watch.range = {start, end - start};
  watch.mode = UFFDIO_REGISTER_MODE_WP;
  if (::ioctl(uffd, UFFDIO_REGISTER, &watch) != 0) {
    const int error = errno;
    if (error == ENOMEM && !is_alive(uffd, start, end)) {
      return fail(Kind::gone, "the watched address space is gone");
    }
    Result<void> failed = sys_fail(error, fmt::format("ioctl(UFFDIO_REGISTER, {:#x}-{:#x})", start, end));
    // ioctl_userfaultfd(2): EBUSY another userfaultfd has it, EINVAL no mapping or one of a kind that cannot
    // be watched, EPERM one that cannot be written.
    if (error == EBUSY || error == EINVAL || error == EPERM) {
      failed.error().kind = Kind::unsupported;
    }
    return failed;
  }
  uffdio_writeprotect clear{};
  clear.range = {start, end - start};
  while (::ioctl(uffd, UFFDIO_WRITEPROTECT, &clear) != 0) {
    if (errno != EAGAIN) {
      // ENOENT: a mapping went away meanwhile; nothing is protected where there is none.
      return errno == ENOENT
                 ? Result<void>()
                 : Result<void>(sys_fail(fmt::format("ioctl(UFFDIO_WRITEPROTECT, {:#x}-{:#x})", start, end)));
    }
  }
  return {};
}

Result<bool> has_write_tracking() {
  const UniqueFd uffd{static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | kUffdUserModeOnly))};
  if (!uffd) {
    return errno == ENOSYS ? Result<bool>(false) : Result<bool>(sys_fail("userfaultfd()"));
  }
  const auto negotiated = uffd_negotiate(uffd.get());
  if (!negotiated.has_value() && negotiated.error().kind != Kind::unsupported) {
    return tl::unexpected<Error>(negotiated.error());
  }
  return negotiated.has_value();
}

}  // namespace ferry::sys

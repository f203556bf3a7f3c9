#include "migrate/transport.h"

#include <poll.h>
#include <unistd.h>

#include <cerrno>

namespace ferry::migrate {

Result<std::size_t> FdTransport::write(std::span<const iovec> parts) {
  const ssize_t written = ::writev(out_.get(), parts.data(), static_cast<int>(parts.size()));
  if (written >= 0) {
    return static_cast<std::size_t>(written);
  }
  if (errno == EAGAIN || errno == EINTR) {
    return std::size_t{0};
  }
  if (errno == EPIPE) {
    return fail(Kind::gone, "the connection broke");
  }
  return sys_fail("writev");
}

Transport::Wait FdTransport::to_write() const { return {out_.get(), POLLOUT}; }

Result<std::size_t> FdTransport::read(void* bytes, std::size_t size) {
  const ssize_t got = ::read(in_.get(), bytes, size);
  if (got > 0) {
    return static_cast<std::size_t>(got);
  }
  if (got == 0) {
    return fail(Kind::gone, "the connection ended");
  }
  if (errno == EAGAIN || errno == EINTR) {
    return std::size_t{0};
  }
  return sys_fail("read");
}

Transport::Wait FdTransport::to_read() const { return {in_.get(), POLLIN}; }

void FdTransport::hang_up() {
  in_.reset();
  out_.reset();
}

}  // namespace ferry::migrate

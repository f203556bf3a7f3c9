// How the bytes of a Link travel: through a pair of descriptors (the remote shell), or a TLS connection.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <span>
#include <string>

#include "base/error.h"
#include "base/unique_fd.h"

namespace ferry::migrate {

// Nothing here waits; whoever uses it does, with poll(2).  One thread reads and one writes, or one does both;
// only hang_up() may come from any other.
// Errors: gone, if the other side went away; corrupt, if somebody changed what it sent; os.
class Transport {
 public:
  virtual ~Transport() = default;
  struct Wait {
    int fd = -1;
    short events = 0;
  };
  // How many of the bytes were taken.  0: none now, and what to wait for is to_write().
  virtual Result<std::size_t> write(std::span<const iovec> parts) = 0;
  [[nodiscard]] virtual Wait to_write() const = 0;
  // How many bytes came.  0: none now, and what to wait for is to_read().
  virtual Result<std::size_t> read(void* bytes, std::size_t size) = 0;
  [[nodiscard]] virtual Wait to_read() const = 0;
  // Whether read() has bytes that poll(2) does not know of.
  [[nodiscard]] virtual bool pending() const { return false; }
  // Whoever waits for the other side sees that it went away.
  virtual void hang_up() = 0;
};

// Descriptors that may be blocking: read() is called only when poll(2) has said so.
class FdTransport : public Transport {
 public:
  FdTransport(UniqueFd in, UniqueFd out) : in_(std::move(in)), out_(std::move(out)) {}
  Result<std::size_t> write(std::span<const iovec> parts) override;
  [[nodiscard]] Wait to_write() const override;
  Result<std::size_t> read(void* bytes, std::size_t size) override;
  [[nodiscard]] Wait to_read() const override;
  void hang_up() override;

 private:
  UniqueFd in_;
  UniqueFd out_;
};

}  // namespace ferry::migrate

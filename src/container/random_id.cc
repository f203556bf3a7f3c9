#include "container/random_id.h"

#include <sys/random.h>

#include <array>
#include <cstdint>

namespace ferry::container {

Result<std::string> random_id() {
  std::array<std::uint8_t, 16> bytes{};
  // Up to 256 bytes come whole and without EINTR once the pool is ready (getrandom(2)).
  if (::getrandom(bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) {
    return sys_fail("getrandom");
  }
  std::string out;
  for (const std::uint8_t byte : bytes) {
    out += fmt::format("{:02x}", byte);
  }
  return out;
}

}  // namespace ferry::container

#include "engine/set_id.h"

#include <sys/random.h>

#include <cstdint>

namespace ferry::engine {

Result<std::string> random_set_id() {
  std::uint8_t bytes[16];
  if (::getrandom(bytes, sizeof bytes, 0) != sizeof bytes) {
    return sys_fail("getrandom");
  }
  std::string out;
  for (std::size_t i = 0; i < sizeof bytes; ++i) {
    out += fmt::format("{:02x}", bytes[i]);
    if (i == 3 || i == 5 || i == 7 || i == 9) {
      out += '-';
    }
  }
  return out;
}

}  // namespace ferry::engine

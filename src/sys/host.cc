#include "sys/host.h"

#include <charconv>
#include <string_view>

#include "sys/file.h"

namespace ferry::sys {

Result<std::uint64_t> available_memory() {
  FERRY_TRY(const std::string text, read_file("/proc/meminfo"));
  constexpr std::string_view kName = "MemAvailable:";
  const std::size_t at = text.find(kName);
  const std::size_t digits = at == std::string::npos ? at : text.find_first_of("0123456789", at);
  std::uint64_t kibibytes = 0;
  if (digits == std::string::npos ||
      std::from_chars(text.data() + digits, text.data() + text.size(), kibibytes).ec != std::errc{}) {
    return fail(Kind::corrupt, "/proc/meminfo does not tell {}", kName);
  }
  return kibibytes << 10;
}

}  // namespace ferry::sys

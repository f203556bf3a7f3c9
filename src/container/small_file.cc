#include "container/small_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "base/unique_fd.h"

namespace ferry::container {

Result<std::string> read_small_file(const std::string& path) {
  constexpr std::size_t kLimit = 64 << 20;
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) {
    return sys_fail(fmt::format("open({})", path));
  }
  std::string out;
  std::array<char, 65536> buffer{};
  for (;;) {
    const ssize_t got = ::read(fd.get(), buffer.data(), buffer.size());
    if (got == 0) {
      return out;
    }
    if (got < 0 && errno != EINTR) {
      return sys_fail(fmt::format("read({})", path));
    }
    out.append(buffer.data(), static_cast<std::size_t>(std::max<ssize_t>(got, 0)));
    if (out.size() > kLimit) {
      return fail(Kind::corrupt, "{} is larger than {} bytes", path, kLimit);
    }
  }
}

Result<void> write_new_file(const std::string& path, std::string_view text) {
  const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!fd) {
    return sys_fail(fmt::format("open({})", path));
  }
  while (!text.empty()) {
    const ssize_t written = ::write(fd.get(), text.data(), text.size());
    if (written < 0 && errno != EINTR) {
      return sys_fail(fmt::format("write({})", path));
    }
    text.remove_prefix(static_cast<std::size_t>(std::max<ssize_t>(written, 0)));
  }
  return {};
}

}  // namespace ferry::container

#include "state/unix_socket/name.h"

#include <unistd.h>

#include <cstddef>
#include <cstring>

namespace ferry::state::unix_socket {

Result<Address> address_of(std::string_view name) {
  Address out;
  out.data.sun_family = AF_UNIX;
  if (name.size() > sizeof out.data.sun_path) {
    return fail(Kind::corrupt, "a Unix socket has a name of {} bytes", name.size());
  }
  std::memcpy(out.data.sun_path, name.data(), name.size());
  out.size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size());
  return out;
}

Result<void> enter_directory(const std::string& directory) {
  if (::chdir(directory.empty() ? "/" : directory.c_str()) != 0) {
    return sys_fail(fmt::format("chdir({})", directory));
  }
  return {};
}

std::string subject_of(const pb::UnixSkEntry& entry) { return fmt::format("Unix socket {}", entry.ino()); }

}  // namespace ferry::state::unix_socket

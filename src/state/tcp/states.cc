#include "state/tcp/states.h"

#include <netinet/in.h>
#include <sys/socket.h>

namespace ferry::state::tcp {

Result<tcp_info> info(int fd, std::string_view subject) {
  tcp_info out{};
  socklen_t size = sizeof out;
  if (::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &out, &size) != 0) {
    return sys_fail(fmt::format("getsockopt({}, TCP_INFO)", subject));
  }
  return out;
}

}  // namespace ferry::state::tcp

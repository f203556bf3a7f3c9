#include "state/packet_socket/loopback.h"

#include <net/if.h>
#include <sys/ioctl.h>

#include <cstring>

namespace ferry::state::packet_socket {
namespace {

// netdevice(7): answers for the network of the socket, not of the caller.
Result<ifreq> ask(int socket, unsigned long what, const char* name) {
  ifreq request{};
  std::strcpy(request.ifr_name, "lo");
  if (::ioctl(socket, what, &request) != 0) {
    return sys_fail(fmt::format("ioctl({}, lo)", name));
  }
  return request;
}

}  // namespace

Result<Loopback> Loopback::of(int socket) {
  Loopback out;
  FERRY_TRY(const ifreq index, ask(socket, SIOCGIFINDEX, "SIOCGIFINDEX"));
  FERRY_TRY(const ifreq mtu, ask(socket, SIOCGIFMTU, "SIOCGIFMTU"));
  FERRY_TRY(const ifreq flags, ask(socket, SIOCGIFFLAGS, "SIOCGIFFLAGS"));
  out.index = index.ifr_ifindex;
  out.mtu = static_cast<std::size_t>(mtu.ifr_mtu);
  out.is_up = (flags.ifr_flags & IFF_UP) != 0;
  return out;
}

}  // namespace ferry::state::packet_socket

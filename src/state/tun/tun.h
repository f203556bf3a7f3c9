// Descriptors of /dev/net/tun: Documentation/networking/tuntap.rst.
//
// One is a queue of an interface, or not attached yet.  The interface itself is the network namespace's and made
// with the other links (state/net), persistent at first; here the queues find it by its name.
#pragma once

#include <memory>

#include "state/file_kind.h"

namespace ferry::state {

std::unique_ptr<FileKind> make_tun_kind();

namespace tun {

// What only a queue of an interface tells; `fd`: one of them.
struct Device {
  std::uint32_t send_buffer = 0, header_size = 0;  // TUNSETSNDBUF, TUNSETVNETHDRSZ
};
Result<Device> look_at(int fd, const std::string& subject);
// Our duplicate of a descriptor in the set that is a queue of that interface; -1 if there is none.
int queue_of(const DumpContext& context, std::uint32_t network, const std::string& interface);

}  // namespace tun
}  // namespace ferry::state

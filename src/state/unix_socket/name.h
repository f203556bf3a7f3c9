// Names of Unix sockets, as the kernel takes them.
#pragma once

#include <sys/socket.h>
#include <sys/un.h>

#include <string>
#include <string_view>

#include "base/error.h"
#include "image/proto/sockets.pb.h"

namespace ferry::state::unix_socket {

struct Address {
  sockaddr_un data{};
  socklen_t size = 0;
};
// Errors: corrupt, if it is longer than a name can be.
Result<Address> address_of(std::string_view name);

// Where a relative name counts from; the calling thread's directory is its own (state/inside.h).
Result<void> enter_directory(const std::string& directory);

// For messages.
std::string subject_of(const pb::UnixSkEntry& entry);

}  // namespace ferry::state::unix_socket

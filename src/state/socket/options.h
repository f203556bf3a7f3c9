// What sockets of all families have in common: SOL_SOCKET options (socket(7)).
#pragma once

#include <string>
#include <string_view>

#include "base/error.h"
#include "image/proto/sockets.pb.h"
#include "state/file_kind.h"

namespace ferry::state::socket {

// Errors: unsupported for an eBPF filter.
Result<void> collect_options(int fd, const std::string& subject, pb::SkOptsEntry& out);
// Those that matter to bind(2): the device and port sharing.  Reuse of addresses is switched on, so
// that remains of the old socket are not in the way; restore_options() sets it as it was.
Result<void> prepare_bind(int fd, const pb::SkOptsEntry& entry, const std::string& subject);
Result<void> restore_options(int fd, const pb::SkOptsEntry& entry, const std::string& subject);
// The same in two steps: a filter also sees what a restore sends to the socket.
Result<void> restore_plain_options(int fd, const pb::SkOptsEntry& entry, const std::string& subject);
Result<void> restore_filter(int fd, const pb::SkOptsEntry& entry, const std::string& subject);

// The two calls, with a word for the option in the error.
Result<int> get_int(int fd, int level, int option, std::string_view what);
Result<void> set_int(int fd, int level, int option, int value, std::string_view what);

// socket(2) with SOCK_CLOEXEC, in the network namespace of the calling thread.  A ping socket is had even where our
// own groups may not have one (icmp(7), ping_group_range).
Result<UniqueFd> make(int family, int type, int protocol);

// A copy of the inherited descriptor with key "socket:[INODE]"; empty if the caller gave none.
Result<UniqueFd> inherited(std::uint32_t inode, const RestoreOptions& options);

}  // namespace ferry::state::socket

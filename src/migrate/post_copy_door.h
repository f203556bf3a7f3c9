// Where a process that fetches memory lets connections in that other processes on this host bring: a Unix socket.
#pragma once

#include <string>

#include "base/error.h"
#include "base/unique_fd.h"
#include "migrate/link.h"

namespace ferry::migrate {

std::string door_path(const std::string& move);
Result<UniqueFd> open_door(const std::string& path);
// Unset if nobody is there any more.
UniqueFd accept_at_door(int listener);

struct Brought {
  UniqueFd in, out;     // of the remote shell
  bool direct = false;  // the source wants connections beside it
  std::string reached;  // the address by which it has reached this host; may be empty
};
Result<Brought> take_what_is_brought(int socket);

// By a `ferry receive` that was told to join: hands its connection over, and returns when it is needed no more.
// Errors: gone, if nobody waits for it.
Result<void> bring_connection(const std::string& move, const Link& link, bool direct, const std::string& reached);

}  // namespace ferry::migrate

// Between a function that reads or writes a descriptor and a stream of the connection.
#pragma once

#include <cstdint>
#include <functional>

#include "base/error.h"
#include "migrate/link.h"

namespace ferry::migrate {

// Sends what `write` puts into its descriptor as one stream; `write` runs in a thread of its own.
// `on_bytes` hears how much it is so far.
Result<std::uint64_t> send_written(Link& link, const std::function<Result<void>(int fd)>& write,
                                   const std::function<void(std::uint64_t)>& on_bytes = {});

// Hands a received stream to `read`, which has to read to its end and runs in a thread of its own.
Result<std::uint64_t> receive_read(Link& link, const std::function<Result<void>(int fd)>& read);

}  // namespace ferry::migrate

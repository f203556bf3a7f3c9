// The content of a tmpfs as a gzip-compressed tar, as CRIU keeps it: numeric owners, modes, times,
// extended attributes, hard links, holes and device nodes.
#pragma once

#include <string>
#include <string_view>

#include "base/error.h"

namespace ferry::state::mount {

// Both work on the current directory of the calling thread, which has to be the root of the filesystem
// (a thread with a file system context of its own: unshare(2), CLONE_FS).
// Sockets are left out, as tar has no word for them: the bound ones come back with the socket itself.
Result<std::string> archive_here();
Result<void> extract_here(std::string_view archive);

}  // namespace ferry::state::mount

// POSIX message queues: mq_overview(7).
//
// A queue is a file of its ipc namespace, so queues stand with the namespace (ipcns-var-NS.img); open files of them are
// this kind.  CRIU knows neither: it would call the files somebody else's (FD_EXT) and refuse the set.
#pragma once

#include <memory>

#include "state/file_kind.h"

namespace ferry::state {

std::unique_ptr<FileKind> make_mqueue_kind();

}  // namespace ferry::state

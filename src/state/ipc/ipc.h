// System V IPC of the tree's own namespaces: ipcns-var-NS.img (limits), ipcns-shm, -msg and -sem.  POSIX message queues
// are of the same namespaces, and in a room of their own (state/mqueue).
// Source: ipc_namespaces(7), sysvipc(7), proc(5).
#pragma once

#include "base/error.h"
#include "state/dump.h"
#include "state/restore.h"

namespace ferry::state::ipc {

// Nothing of an ipc namespace that is ours.
// Errors: unsupported, naming a POSIX message queue and what of it cannot be carried, or a segment that a process has
// attached in another namespace than its own.
Result<void> collect(DumpContext& context);

// Limits and objects, with their numbers and content.  The root skeleton has its ipc namespace, the others are held
// (state/nested); no mapping of a segment exists yet.
Result<void> restore(RestoreContext& context);

// The same when the namespace was filled before, from an earlier look at the tree (a restore ahead of time).
Result<void> renew(RestoreContext& context, const image::Set& before);

// Segments that were removed while attached (shmctl(2), IPC_RMID), once every mapping is in place.
Result<void> finish(RestoreContext& context);

}  // namespace ferry::state::ipc

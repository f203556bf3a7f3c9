// Network namespaces.  Source: network_namespaces(7).
//
// ours      nothing to do: sockets are carried by their own rooms
// whole     a namespace of the tree's own: its links, addresses, routes, rules, neighbours, packet filters,
//           tracked connections and kernel parameters are made again
// empty     --empty-ns net, which Docker always gives: a new namespace whose interfaces come from outside
//           (Docker's hook at setup-namespaces); what is in it by nature, lo, is brought up here
// external  the caller keeps it (--external net[INODE]:KEY) and hands it in again (--inherit-fd)
// A tree may have several; pairs of interfaces may lie in two of them.
#pragma once

#include "base/error.h"
#include "state/dump.h"
#include "state/restore.h"

namespace ferry::state::net {

// Errors: unsupported, naming the interface that cannot be made again.
Result<void> collect(DumpContext& context);

// Before the setup-namespaces stage and while the skeleton still has our mounts.
Result<void> restore(RestoreContext& context);

}  // namespace ferry::state::net

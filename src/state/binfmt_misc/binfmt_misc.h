// Handlers of binfmt_misc: which interpreter runs files of a kind that the kernel does not know.
//
// Source: kernel Documentation/admin-guide/binfmt-misc.rst.  Every user namespace has handlers of its own since Linux
// 6.7; they live as long as somebody has mounted their file system.
#pragma once

#include <string>
#include <string_view>

#include "base/error.h"
#include "image/proto/mount.pb.h"
#include "state/dump.h"
#include "state/mount/tmpfs.h"
#include "state/restore.h"

namespace ferry::state::binfmt_misc {

// The handlers of the file system that the tree has mounted itself, into binfmt-misc.img.  The entries of the mounts
// are in the set; where the host has it mounted as well, it comes along as an external mount, and its handlers are the
// host's.  Errors: unsupported (something is mounted over it; more than one such file system).
Result<void> collect(DumpContext& context, const std::vector<mount::View>& views);
// Once the mounts are there, the interpreters included.  A handler that is there already, as the host's are on the host
// that it comes from, stays as it is.  Errors: unsupported (one of its name that does something else).
Result<void> restore(RestoreContext& context);
// For a tree that was made ahead of time, with the handlers that the first set tells of: whether the second one tells
// of the same.  Errors: unsupported.
Result<void> check_same(const image::Set& before, const image::Set& now);

// --- the formats, apart from any process

// What the file of a handler shows.  Errors: corrupt.
Result<pb::BinfmtMiscEntry> parse(std::string_view name, std::string_view text);
// What makes that handler when it is written to the file "register".  Errors: corrupt.
Result<std::string> registration(const pb::BinfmtMiscEntry& entry);

}  // namespace ferry::state::binfmt_misc

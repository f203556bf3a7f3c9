// File locks and leases: fcntl(2), flock(2).
//
// Locks are no descriptors: any open file may carry some.  The engine calls collect() for every
// descriptor that it looks at, and restore() when a task has its descriptors.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "state/file_kind.h"

namespace ferry::state::locks {

// FileLockEntry.flag
enum class Sort : std::uint8_t { posix = 1, flock = 2, ofd = 4, lease = 8 };

struct Lock {
  Sort sort = Sort::posix;
  std::uint32_t type = 0;  // F_RDLCK, F_WRLCK, F_UNLCK
  bool breaking = false;   // a lease that its holder was asked to give up
  std::int64_t start = 0;
  std::int64_t length = 0;  // 0: to the end of the file
};
// The value of a "lock:" line of fdinfo (proc(5)).
Result<Lock> parse_lock(std::string_view text);

// The locks held through this descriptor, into filelocks.img.
// Errors: unsupported, if there are some and --file-locks was not given.
Result<void> collect(const FdProbe& probe, DumpContext& context);

// Adds the calls that take them again; to be run by the task itself, because a POSIX lock belongs to
// the process that asks for it.
Result<void> restore(RestoreTask& task, RestoreContext& context, tracee::Batch& batch);

// When all tasks have their descriptors: leases that were being broken are again.
Result<void> break_leases(RestoreContext& context);

}  // namespace ferry::state::locks

// Brings a new ring to the positions of the one that it stands for.
//
// The kernel counts submissions and completions in words of its own, which begin at zero and only go up by use; the
// program has its own copies and expects them to go on.  So the ring is used for nothing (IORING_OP_NOP) as often as
// it takes.
#pragma once

#include <cstdint>

#include "base/error.h"
#include "image/proto/file_kinds.pb.h"
#include "state/io_uring/areas.h"
#include "state/restore.h"

namespace ferry::state::io_uring {

// Where the words of a ring are; what io_uring_setup(2) says is compared with it.
enum Offset : std::uint32_t { kSqHead = 0, kSqTail = 4, kCqHead = 8, kCqTail = 12, kRingsHead = 64 };

struct Owner {
  RestoreTask* task;
  tracee::Thread* thread;
};

// A ring of a skeleton.
struct NewRing {
  int ours;  // its descriptor in our table
  int fd;    // and in the owner's
  Owner owner;
  const Areas& areas;
};

// From zero to the positions of the entry.
Result<void> advance(const NewRing& ring, const pb::FerryIoUringEntry& entry);

}  // namespace ferry::state::io_uring

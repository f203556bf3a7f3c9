// Attachments of System V segments, whole or with pieces missing.
#pragma once

#include <cstdint>
#include <vector>

#include "base/error.h"
#include "state/restore.h"
#include "tracee/batch.h"

namespace ferry::state::memory {

// The mappings of one task in the order of their addresses.  shmat(2) maps a segment as a whole, so an
// attachment is made where its first piece is met, and what the program has unmapped of it is unmapped.
class Segments {
 public:
  Segments(const RestoreTask& task, RestoreContext& context) : task_(task), context_(context) {}
  Result<void> add(const pb::VmaEntry& vma, tracee::Batch& batch);

 private:
  struct Attachment {
    std::uint64_t id, base;
    bool operator==(const Attachment&) const = default;
  };
  Result<std::uint64_t> size_of(std::uint64_t id);
  Result<void> attach(const Attachment& attachment, const pb::VmaEntry& first, tracee::Batch& batch);

  const RestoreTask& task_;
  RestoreContext& context_;
  std::vector<Attachment> made_;
};

}  // namespace ferry::state::memory

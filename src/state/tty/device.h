// Terminals that are devices of the host: virtual terminals, serial lines, the console.
//
// What such a terminal shows or has received stays with the device; a restore opens the device of the same path and
// gives it the modes and the session that it had.  One that was declared external (criu(8), --external tty[...]) is
// whichever terminal the restore inherits under that key.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <set>

#include "state/file_kind.h"

namespace ferry::state::tty {

// Checkpoint: the terminals of this kind that the tree has open.
class Devices {
 public:
  // Describes the terminal in tty-info.img, once, and returns its id there.
  Result<std::uint32_t> collect(const FdProbe& probe, DumpContext& context);
  // `tty_nr`: as proc(5) has it in /proc/PID/stat.
  [[nodiscard]] bool has(std::int32_t tty_nr) const { return numbers_.contains(tty_nr); }

 private:
  std::uint32_t new_index(pb::TtyType type);

  std::map<dev_t, std::uint32_t> ids_;
  std::set<std::int32_t> numbers_;
  std::set<std::uint32_t> indices_;
};

// Restore.
[[nodiscard]] bool is_device(const pb::TtyInfoEntry& info);
Result<UniqueFd> open_device(const pb::TtyInfoEntry& info, const pb::TtyFileEntry& entry, RestoreContext& context);
// Another description of a device terminal that the tree has open.
Result<UniqueFd> open_device_again(const pb::TtyInfoEntry& info, RestoreContext& context, int flags);

}  // namespace ferry::state::tty

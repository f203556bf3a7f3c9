// Checkpoint: terminals that cannot be asked, or are open nowhere.
#pragma once

#include <cstdint>
#include <string>

#include "base/error.h"
#include "state/file_kind.h"

namespace ferry::state::tty {

// As tty-info.img has device numbers: the low 32 bits of the C library's dev_t.
std::uint32_t encode_rdev(dev_t device);

// A slave whose master is closed: every call answers EIO or the end of the file, and the number may be
// another's by now.  `index`: for tty-info.img, of no other terminal.
Result<void> collect_hung_up(const FdProbe& probe, std::uint32_t index, DumpContext& context, pb::TtyFileEntry& entry);

// The slave of `master` as the controlling terminal of a session in which nobody has it open.
// `tty_nr`: as /proc/PID/stat gives it.
Result<void> add_session(int master, std::uint32_t index, std::int32_t tty_nr, const std::string& subject,
                         DumpContext& context);

}  // namespace ferry::state::tty

// Controlling terminals: which session has which, and /dev/tty.
#pragma once

#include "state/dump.h"
#include "state/inside.h"
#include "state/restore.h"

namespace ferry::state::tty {

// Numbers of the innermost pid namespace, 0: none in the tree.
struct Session {
  std::uint32_t leader = 0;
  std::uint32_t foreground = 0;
};
// The session of the terminal with that device number, as the tasks' /proc/PID/stat tells it: from
// outside of the session a slave does not (ioctl_tty(2), TIOCGSID).
Session session_of(const DumpContext& context, std::int32_t tty_nr);
// The eighth field of /proc/PID/stat; 0 if there is none.
pid_t parse_foreground_group(std::string_view stat);

// A duplicate of description `file_id` (files.img) of the tree.
Result<UniqueFd> duplicate_of(const DumpContext& context, std::uint32_t file_id);

// Opens /dev/tty so that it means `slave`: in a child that has it as controlling terminal for as long
// as that takes.  The terminal must not be one already.
Result<UniqueFd> open_current(Inside& inside, int slave, int flags);

}  // namespace ferry::state::tty

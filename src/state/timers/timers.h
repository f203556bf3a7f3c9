// Interval timers and POSIX timers.
// Source: getitimer(2), timer_create(2), proc(5) /proc/PID/timers, Documentation/filesystems/proc.rst.
#pragma once

#include <string_view>

#include "state/dump.h"
#include "state/restore.h"

namespace ferry::state::timers {

struct PosixTimer {
  int id = 0;
  int signal = 0;
  std::uint64_t value = 0;  // sigval, its bits
  int notify = 0;           // SIGEV_*
  pid_t thread = 0;         // SIGEV_THREAD_ID: its number as this procfs sees it
  int clock = 0;
};
// Text of /proc/PID/timers.
Result<std::vector<PosixTimer>> parse_timers(std::string_view text);

// Reads the list of timers outside; what remains of each is asked in the batch.
Answers ask(DumpTask& task, tracee::Batch& batch);
// Refuses timers on clocks that cannot be named again.
Result<void> collect(DumpTask& task, DumpContext& context);

// To be put into the leader's last batch: timers start to run with it, and SIGEV_THREAD_ID needs the
// threads.  Ids are kept.
Result<void> restore(RestoreTask& task, RestoreContext& context, tracee::Batch& batch);

}  // namespace ferry::state::timers

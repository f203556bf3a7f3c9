// Timers that notify through a descriptor: timerfd_create(2).
#pragma once

#include <ctime>
#include <memory>

#include "state/file_kind.h"

namespace ferry::state {

struct TimerfdInfo {
  int clock = 0;
  std::uint64_t ticks = 0;          // expirations that were not read yet
  std::uint32_t settime_flags = 0;  // TFD_TIMER_*
  timespec value{};                 // what remains, also of an absolute timer
  timespec interval{};
};
Result<TimerfdInfo> parse_timerfd(const sys::FdInfo& info);

std::unique_ptr<FileKind> make_timerfd_kind();

}  // namespace ferry::state

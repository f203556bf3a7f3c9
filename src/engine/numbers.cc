#include "engine/numbers.h"

#include <fcntl.h>
#include <sys/ioctl.h>

#include <thread>
#include <vector>

#include "sys/file.h"
#include "sys/proc.h"

namespace ferry::engine {

// linux/nsfs.h: a number of that namespace as ours.  Since Linux 6.11.
#ifndef NS_GET_PID_FROM_PIDNS
#define NS_GET_PID_FROM_PIDNS _IOR(0xb7, 0x6, int)
#endif

Result<Numbers> Numbers::of(HostPid root) {
  Numbers out;
  FERRY_TRY(const auto text, sys::read_file(fmt::format("/proc/{}/status", root)));
  FERRY_TRY(const auto status, sys::parse_status(text));
  if (status.ns_pid.size() > 1) {
    FERRY_TRY(out.ns_, sys::open(fmt::format("/proc/{}/ns/pid", root), O_RDONLY));
  }
  return out;
}

Result<HostPid> Numbers::find(NsPid wanted, HostPid parent, bool thread) const {
  if (!ns_) {
    return HostPid(wanted.value);
  }
  if (const int pid = ::ioctl(ns_.get(), NS_GET_PID_FROM_PIDNS, wanted.value); pid > 0) {
    return HostPid(pid);
  }
  std::vector<HostPid> candidates;
  if (thread) {
    FERRY_TRY(const UniqueFd proc, sys::open_proc(parent));
    FERRY_TRY(const auto tids, sys::numeric_entries(proc.get(), "task"));
    for (const int tid : tids) {
      candidates.emplace_back(tid);
    }
  } else {
    FERRY_TRY(const auto text, sys::read_file(fmt::format("/proc/{}/task/{}/children", parent, parent)));
    FERRY_TRY(candidates, sys::parse_children(text));
  }
  // The youngest comes last, and it is the youngest that is looked for.
  for (auto candidate = candidates.rbegin(); candidate != candidates.rend(); ++candidate) {
    FERRY_TRY(const auto text, sys::read_file(fmt::format("/proc/{}/status", *candidate)));
    FERRY_TRY(const auto status, sys::parse_status(text));
    if (!status.ns_pid.empty() && status.ns_pid.back() == wanted.value) {
      return *candidate;
    }
  }
  return fail(Kind::gone, "the new task {} is not to be found below pid {}", wanted, parent);
}

bool Numbers::is_lived_under(NsPid number) const {
  // An older kernel does not tell: then time does.
  const int pid = ns_ ? ::ioctl(ns_.get(), NS_GET_PID_FROM_PIDNS, number.value) : number.value;
  if (pid <= 0) {
    return false;
  }
  const auto text = sys::read_file(fmt::format("/proc/{}/stat", pid));
  const auto stat = text.has_value() ? sys::parse_stat(*text) : Result<sys::Stat>(fail(Kind::gone, "pid {}", pid));
  return stat.has_value() && stat->state != 'Z' && stat->state != 'X';
}

bool Vacancy::await(const Numbers& numbers, NsPid number) {
  constexpr std::chrono::milliseconds kPoll{2};
  if (deadline_.passed() || numbers.is_lived_under(number)) {
    return false;
  }
  std::this_thread::sleep_for(kPoll);
  return true;
}

}  // namespace ferry::engine

#include <sys/ptrace.h>

#include <algorithm>
#include <csignal>

#include "state/vdso/vdso.h"
#include "sys/file.h"
#include "sys/proc.h"
#include "tracee/await_stop.h"

namespace ferry::state::vdso {
namespace {

constexpr std::uint64_t kNoCall = ~0ULL;
constexpr int kMostSteps = 4096;  // its functions have a few hundred instructions
constexpr std::uint64_t kTrap = 1ULL << (SIGTRAP - 1);

// The mapping that the thread stands in.
const sys::Mapping* place_of(const DumpTask& task, std::uint64_t ip) {
  const auto found = std::upper_bound(task.mappings.begin(), task.mappings.end(), ip,
                                      [](std::uint64_t at, const sys::Mapping& m) { return at < m.end; });
  return found != task.mappings.end() && found->start <= ip ? &*found : nullptr;
}

Result<void> step_out(tracee::Thread& thread, const sys::Mapping& vdso) {
  for (int i = 0; i < kMostSteps; ++i) {
    FERRY_CHECK(thread.resume(PTRACE_SINGLESTEP));
    FERRY_CHECK(tracee::await_stop(thread, tracee::Stop::Why::signal, PTRACE_SINGLESTEP));
    FERRY_TRY(const tracee::Registers now, thread.registers());
    if (now.rip < vdso.start || now.rip >= vdso.end) {
      break;
    }
  }
  // Back to the stop in which everything else finds it: it is taken before anything of the program runs.
  FERRY_CHECK(thread.interrupt());
  FERRY_CHECK(thread.resume(PTRACE_CONT));
  return tracee::await_stop(thread, tracee::Stop::Why::interrupt, PTRACE_CONT);
}

}  // namespace

Result<void> leave(DumpTask& task, DumpThread& seen) {
  const sys::Mapping* const place = place_of(task, seen.registers.rip);
  if (place == nullptr || place->name != "[vdso]" || seen.registers.orig_rax != kNoCall) {
    return {};
  }
  // A trap that is blocked or ignored takes the program's action for it away (force_sig_info_to_task in
  // kernel/signal.c), and one that is pending could not be told from ours.
  FERRY_TRY(const auto text, sys::read_file(fmt::format("/proc/{}/task/{}/status", task.pid, seen.tid)));
  FERRY_TRY(const auto status, sys::parse_status(text));
  if (((status.sig_blocked | status.sig_ignored | status.sig_pending | status.shared_pending) & kTrap) != 0 ||
      task.job_stopped) {
    return {};
  }
  tracee::Thread& thread = task.thread(seen);
  FERRY_TRY(const std::uint64_t mask, thread.signal_mask());
  FERRY_CHECK(thread.set_signal_mask(~kTrap));
  const auto stepped = step_out(thread, *place).during("leading task {} out of the vDSO", seen.tid);
  FERRY_CHECK(thread.set_signal_mask(mask));
  FERRY_CHECK(stepped);
  FERRY_TRY(seen.registers, thread.registers());
  return {};
}

}  // namespace ferry::state::vdso

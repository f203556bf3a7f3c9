// What only the processes of a tree can tell (checkpoint_story.h).
#include <sys/ptrace.h>

#include <deque>

#include "engine/checkpoint_story.h"
#include "state/cpu/cpu.h"
#include "state/creds/creds.h"
#include "state/limits/limits.h"
#include "state/memory/memory.h"
#include "state/memory/room.h"
#include "state/numa/numa.h"
#include "state/seccomp/seccomp.h"
#include "state/signals/signals.h"
#include "state/thread_area/thread_area.h"
#include "state/timers/timers.h"

namespace ferry::engine {
namespace {

using state::DumpTask;
using state::DumpThread;

constexpr std::size_t kAreaSize = 16U << 20;  // address space only: what no batch uses is never touched

// Not at the seizing: it takes effect at once, and then the program would run unfiltered.
Result<void> suspend_seccomp(DumpTask& task, const DumpThread& thread) {
  auto suspended = task.thread(thread).set_options(PTRACE_O_TRACESYSGOOD | PTRACE_O_SUSPEND_SECCOMP);
  if (!suspended.has_value() && (task.status.seccomp != 0 || suspended.error().kind == Kind::gone)) {
    return suspended;
  }
  return {};
}

std::vector<state::Answers> ask_thread(DumpTask& task, DumpThread& thread, tracee::Batch& batch) {
  return {state::signals::ask_thread(task, thread, batch),     state::creds::ask_thread(task, thread, batch),
          state::seccomp::ask_thread(task, thread, batch),     state::limits::ask_thread(task, thread, batch),
          state::thread_area::ask_thread(task, thread, batch), state::numa::ask_thread(thread, batch)};
}

void answer_like(const DumpTask& task, DumpThread& thread) {
  state::signals::answer_like(task, thread);
  state::creds::answer_like(task, thread);
  state::seccomp::answer_like(task, thread);
  state::limits::answer_like(task, thread);
  state::thread_area::answer_like(task, thread);
}

// All threads that have to be asked at once, each its own small batch.
Result<void> ask_threads(DumpTask& task) {
  std::deque<tracee::Batch> batches;
  std::vector<std::vector<state::Answers>> answers;
  std::vector<tracee::Process::Job> jobs;
  for (DumpThread& thread : task.threads) {
    if (thread.index == 0 || !task.asks(thread)) {
      continue;
    }
    FERRY_CHECK(suspend_seccomp(task, thread));
    answers.push_back(ask_thread(task, thread, batches.emplace_back()));
    jobs.push_back({&task.thread(thread), &batches.back()});
  }
  FERRY_TRY(const auto all, task.process.run_all(jobs));
  for (std::size_t i = 0; i < all.size(); ++i) {
    for (const auto& answer : answers[i]) {
      FERRY_CHECK(answer(all[i]));
    }
  }
  for (DumpThread& thread : task.threads) {
    if (!task.asks(thread)) {
      answer_like(task, thread);
    }
  }
  return {};
}

Result<void> ask_task(DumpTask& task, Caretaker& caretaker, const tracee::WaysBack& ways) {
  FERRY_CHECK(suspend_seccomp(task, task.threads.front()));
  task.process.set_end_signal(
      state::signals::end_of_batch(task.status.sig_pending | task.status.shared_pending, task.status.sig_caught));
  const auto kernel = state::memory::find_kernel_mappings(task.mappings);
  const auto room = state::memory::lowest_room(task.mappings, kAreaSize);
  if (!room.has_value()) {
    return fail(Kind::unsupported, "{} has no {} bytes of address space left", task.subject(), kAreaSize);
  }
  FERRY_TRY(const std::uint64_t mask, task.process.leader().signal_mask());
  task.process.set_way_back(ways.of(task.pid, task.mappings));
  caretaker.lend(task.pid, task.stat.start_time, {*room, kAreaSize}, mask, kernel.vdso.start, kernel.vdso.size);
  FERRY_CHECK(task.process.map_area(kAreaSize, *room, kernel.vdso.start, kernel.vdso.size));
  tracee::Batch of_process;
  const state::Answers of_all[] = {state::memory::ask(task, of_process), state::signals::ask(task, of_process),
                                   state::timers::ask(task, of_process), state::creds::ask(task, of_process),
                                   state::limits::ask(task, of_process), state::cpu::ask(task, of_process),
                                   state::numa::ask(task, 0, of_process)};
  const auto of_leader = ask_thread(task, task.threads.front(), of_process);
  FERRY_TRY(const auto replies, task.process.run(task.process.leader(), of_process));
  for (const auto& answer : of_all) {
    FERRY_CHECK(answer(replies));
  }
  for (const auto& answer : of_leader) {
    FERRY_CHECK(answer(replies));
  }
  for (std::size_t at = state::numa::kAtOnce; at < task.mappings.size(); at += state::numa::kAtOnce) {
    tracee::Batch more;
    const state::Answers answer = state::numa::ask(task, at, more);
    if (!more.empty()) {
      FERRY_TRY(const auto told, task.process.run(task.process.leader(), more));
      FERRY_CHECK(answer(told));
    }
  }
  return task.threads.size() > 1 ? ask_threads(task) : Result<void>();
}

}  // namespace

// What only the processes themselves can tell: one batch in each leader, a small one in each thread,
// all threads of a process at once.
Result<void> CheckpointStory::ask() {
  for (auto& task : tasks_) {
    if (!task->zombie) {
      FERRY_CHECK(ask_task(*task, caretaker_, ways_).during("asking pid {}", task->pid));
    }
  }
  return {};
}

}  // namespace ferry::engine

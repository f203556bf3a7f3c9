#include "state/signals/signals.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

#include <array>
#include <cerrno>

#include "sys/file.h"
#include "sys/memory.h"

namespace ferry::state::signals {
namespace {

constexpr int kSignals = 64;
constexpr std::size_t kMaskSize = 8;
constexpr std::size_t kSigactions = 62;  // all but SIGKILL and SIGSTOP
constexpr std::size_t kInfoSize = 128;
constexpr std::uint64_t kIgnore = 1;  // SIG_IGN

// struct sigaction as rt_sigaction(2) has it on x86-64
struct KernelAction {
  std::uint64_t handler, flags, restorer, mask;
};
static_assert(sizeof(KernelAction) == 32);

// stack_t
struct KernelStack {
  std::uint64_t sp;
  std::uint32_t flags;
  std::uint32_t padding;
  std::uint64_t size;
};
static_assert(sizeof(KernelStack) == sizeof(stack_t));

bool settable(int signal) { return signal != SIGKILL && signal != SIGSTOP; }

Result<void> peek(HostPid tid, std::uint32_t flags, pb::SignalQueueEntry& out) {
  std::array<std::array<char, kInfoSize>, 32> infos;  // the kernel fills in what it says
  for (std::uint64_t offset = 0;;) {
    __ptrace_peeksiginfo_args args{};
    args.off = offset;
    args.flags = flags;
    args.nr = static_cast<std::int32_t>(infos.size());
    const long got = ::ptrace(PTRACE_PEEKSIGINFO, tid.value, &args, infos.data());
    if (got < 0) {
      return sys_fail(fmt::format("ptrace(PEEKSIGINFO, {})", tid));
    }
    for (std::size_t i = 0; i < static_cast<std::size_t>(got); ++i) {
      int signal = 0;
      std::memcpy(&signal, infos[i].data(), sizeof signal);
      // One that was sent to a process that is stopped already waits for nothing but to be thrown away by
      // SIGCONT (prepare_signal in kernel/signal.c).
      if (signal != SIGSTOP) {
        out.add_signals()->set_siginfo(infos[i].data(), kInfoSize);
      }
    }
    if (static_cast<std::size_t>(got) < infos.size()) {
      return {};
    }
    offset += static_cast<std::uint64_t>(got);
  }
}

// The number stands first in every siginfo.
Result<int> number_in(const pb::SiginfoEntry& entry, HostPid tid) {
  if (entry.siginfo().size() != kInfoSize) {
    return fail(Kind::corrupt, "a pending signal of task {} has {} bytes, not {}", tid, entry.siginfo().size(),
                kInfoSize);
  }
  int signal = 0;
  std::memcpy(&signal, entry.siginfo().data(), sizeof signal);
  if (signal < 1 || signal > kSignals || !settable(signal)) {
    return fail(Kind::corrupt, "task {} has pending signal {}, which cannot be", tid, signal);
  }
  return signal;
}

}  // namespace

Answers ask(DumpTask& task, tracee::Batch& batch) {
  std::vector<tracee::Data> rooms;
  for (int signal = 1; signal <= kSignals; ++signal) {
    if (settable(signal)) {
      rooms.push_back(batch.room(sizeof(KernelAction)));
      batch.must("rt_sigaction", SYS_rt_sigaction, {signal, 0, rooms.back(), kMaskSize});
    }
  }
  return [&task, rooms = std::move(rooms)](const tracee::Replies& replies) -> Result<void> {
    auto& out = *task.core->mutable_tc();
    out.clear_sigactions();
    std::size_t next = 0;
    for (int signal = 1; signal <= kSignals; ++signal) {
      if (!settable(signal)) {
        continue;
      }
      const auto action = replies.object<KernelAction>(rooms[next++]);
      pb::SaEntry& entry = *out.add_sigactions();
      entry.set_sigaction(action.handler);
      entry.set_flags(action.flags);
      entry.set_restorer(action.restorer);
      entry.set_mask(action.mask);
    }
    return {};
  };
}

Answers ask_thread(DumpTask&, DumpThread& thread, tracee::Batch& batch) {
  const tracee::Data room = batch.room(sizeof(KernelStack));
  batch.must("sigaltstack", SYS_sigaltstack, {0, room});
  const tracee::Data death = batch.room(sizeof(int));
  constexpr int kGetPdeathsig = 2;  // PR_GET_PDEATHSIG
  batch.must("prctl(PR_GET_PDEATHSIG)", SYS_prctl, {kGetPdeathsig, death});
  return [&thread, room, death](const tracee::Replies& replies) -> Result<void> {
    auto& out = *thread.core->mutable_thread_core();
    const auto stack = replies.object<KernelStack>(room);
    out.mutable_sas()->set_ss_sp(stack.sp);
    out.mutable_sas()->set_ss_size(stack.size);
    // SS_ONSTACK tells where the stack pointer is; it is not a property of the stack.
    out.mutable_sas()->set_ss_flags(stack.flags & ~static_cast<std::uint32_t>(SS_ONSTACK));
    if (const int signal = replies.object<int>(death); signal != 0) {
      out.set_pdeath_sig(static_cast<std::uint32_t>(signal));
    }
    return {};
  };
}

void answer_like(const DumpTask&, DumpThread& thread) {
  const sys::TaskWords& words = *thread.words;
  auto& out = *thread.core->mutable_thread_core();
  out.mutable_sas()->set_ss_sp(words.stack_base);
  out.mutable_sas()->set_ss_size(words.stack_size);
  // As sigaltstack(2) puts it together (do_sigaltstack in kernel/signal.c).
  constexpr std::uint32_t kAutoDisarm = 1U << 31;  // SS_AUTODISARM
  out.mutable_sas()->set_ss_flags((static_cast<std::uint32_t>(words.stack_flags) & kAutoDisarm) |
                                  (words.stack_size == 0 ? std::uint32_t{SS_DISABLE} : 0));
  if (words.death_signal != 0) {
    out.set_pdeath_sig(static_cast<std::uint32_t>(words.death_signal));
  }
}

Result<void> collect(DumpTask& task, DumpContext&) {
  auto& tc = *task.core->mutable_tc();
  return peek(task.pid, PTRACE_PEEKSIGINFO_SHARED, *tc.mutable_signals_s())
      .during("reading the pending signals of pid {}", task.pid);
}

Result<void> collect_thread(DumpTask& task, DumpThread& thread, DumpContext&) {
  auto& out = *thread.core->mutable_thread_core();
  if (thread.index == 0) {
    task.core->mutable_tc()->set_blk_sigset(thread.signal_mask);
  } else {
    out.set_blk_sigset(thread.signal_mask);
  }
  return peek(thread.tid, 0, *out.mutable_signals_p()).during("reading the pending signals of task {}", thread.tid);
}

Result<void> restore(RestoreTask& task, RestoreContext&, tracee::Batch& batch) {
  const auto& tc = task.core->tc();
  if (static_cast<std::size_t>(tc.sigactions_size()) != kSigactions) {
    return fail(Kind::corrupt, "the image of pid {} has {} signal actions, not {}", task.ns_pid(), tc.sigactions_size(),
                kSigactions);
  }
  int next = 0;
  for (int signal = 1; signal <= kSignals; ++signal) {
    if (!settable(signal)) {
      continue;
    }
    const pb::SaEntry& entry = tc.sigactions(next++);
    if (entry.compat_sigaction()) {
      return fail(Kind::unsupported, "pid {} has 32-bit signal actions", task.ns_pid());
    }
    const KernelAction action{entry.sigaction(), entry.flags(), entry.restorer(), entry.mask()};
    batch.must("rt_sigaction", SYS_rt_sigaction, {signal, batch.object(action), 0, kMaskSize});
  }
  // Only the task itself may send itself what looks like the kernel's own signals (rt_sigqueueinfo(2)).
  for (const pb::SiginfoEntry& entry : tc.signals_s().signals()) {
    FERRY_TRY(const int signal, number_in(entry, task.pid));
    batch.must("rt_sigqueueinfo", SYS_rt_sigqueueinfo,
               {task.ns_pid().value, signal, batch.bytes(std::as_bytes(std::span(entry.siginfo())))});
  }
  return {};
}

Result<void> restore_thread(RestoreTask& task, RestoreThread& thread, RestoreContext&, tracee::Batch& batch) {
  const auto& core = thread.core->thread_core();
  if (core.has_sas()) {
    const KernelStack stack{core.sas().ss_sp(), core.sas().ss_flags(), 0, core.sas().ss_size()};
    batch.must("sigaltstack", SYS_sigaltstack, {batch.object(stack), 0});
  }
  for (const pb::SiginfoEntry& entry : core.signals_p().signals()) {
    FERRY_TRY(const int signal, number_in(entry, thread.tid));
    batch.must(
        "rt_tgsigqueueinfo", SYS_rt_tgsigqueueinfo,
        {task.ns_pid().value, thread.ns_tid.value, signal, batch.bytes(std::as_bytes(std::span(entry.siginfo())))});
  }
  return {};
}

std::uint64_t pending_in(const RestoreTask& task) {
  std::uint64_t set = 0;
  const auto add = [&](const pb::SignalQueueEntry& queue) {
    for (const pb::SiginfoEntry& entry : queue.signals()) {
      std::int32_t number = 0;  // siginfo_t begins with si_signo
      if (entry.siginfo().size() >= sizeof number) {
        std::memcpy(&number, entry.siginfo().data(), sizeof number);
        set |= number >= 1 && number <= 64 ? std::uint64_t{1} << (number - 1) : 0;
      }
    }
  };
  add(task.core->tc().signals_s());
  for (const RestoreThread& thread : task.threads) {
    add(thread.core->thread_core().signals_p());
  }
  return set;
}

int end_of_batch(std::uint64_t pending, std::uint64_t caught) {
  const auto is_in = [](std::uint64_t set, int signal) { return (set >> (signal - 1) & 1) != 0; };
  if (const int quiet = tracee::quiet_signal(pending | caught); !is_in(pending | caught, quiet)) {
    return quiet;
  }
  if (const int quiet = tracee::quiet_signal(pending); !is_in(pending, quiet)) {
    return quiet;
  }
  for (const int signal : {SIGUSR1, SIGUSR2, SIGHUP, SIGTERM, SIGIO, SIGPROF, SIGRTMIN, SIGRTMAX}) {
    if (!is_in(pending, signal)) {
      return signal;
    }
  }
  return SIGURG;
}

std::uint64_t blocked_by(const RestoreTask& task, const RestoreThread& thread) {
  return thread.index == 0 ? task.core->tc().blk_sigset() : thread.core->thread_core().blk_sigset();
}

}  // namespace ferry::state::signals

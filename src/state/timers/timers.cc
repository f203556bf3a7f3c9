#include "state/timers/timers.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "sys/file.h"

namespace ferry::state::timers {
namespace {

// Since Linux 6.15: timer_create(2) takes the id that it is given.
constexpr int kCreateRestoreIds = 77;  // PR_TIMER_CREATE_RESTORE_IDS
constexpr int kOff = 0, kOn = 1, kGet = 2;
// Without it ids can only be counted up to.
constexpr std::uint32_t kMaxCountedId = 20'000;

// struct sigevent as timer_create(2) has it
struct KernelSigevent {
  std::uint64_t value;
  std::int32_t signal;
  std::int32_t notify;
  std::int32_t thread;
  std::array<std::int32_t, 11> padding;
};
static_assert(sizeof(KernelSigevent) == 64);

std::string_view after(std::string_view line, std::string_view key) {
  return line.substr(0, key.size()) == key ? line.substr(key.size()) : std::string_view();
}

std::optional<std::int64_t> signed_number(std::string_view text) {
  const bool minus = !text.empty() && text.front() == '-';
  const auto value = sys::parse_number(minus ? text.substr(1) : text);
  if (!value || *value > 0x7fffffff) {
    return std::nullopt;
  }
  return minus ? -static_cast<std::int64_t>(*value) : static_cast<std::int64_t>(*value);
}

// "60/00007fff86e452a8"
bool parse_signal(std::string_view text, PosixTimer& out) {
  const std::size_t slash = text.find('/');
  if (slash == std::string_view::npos) {
    return false;
  }
  const auto signal = sys::parse_number(text.substr(0, slash));
  // A null pointer is printed as "(null)" by some kernels (lib/vsprintf.c).
  const std::string_view pointer = text.substr(slash + 1);
  const auto value = pointer == "(null)" ? std::optional<std::uint64_t>(0) : sys::parse_number(pointer, 16);
  if (!signal || !value || *signal > 64) {
    return false;
  }
  out.signal = static_cast<int>(*signal);
  out.value = *value;
  return true;
}

// "signal/pid.2634", "thread/tid.12", "none/pid.1": fs/proc/base.c, show_timer
bool parse_notify(std::string_view text, PosixTimer& out) {
  const std::size_t slash = text.find('/'), dot = text.find('.');
  if (slash == std::string_view::npos || dot == std::string_view::npos || dot < slash) {
    return false;
  }
  const std::string_view kind = text.substr(0, slash), whose = text.substr(slash + 1, dot - slash - 1);
  const auto task = sys::parse_number(text.substr(dot + 1));
  if (!task || (whose != "pid" && whose != "tid")) {
    return false;
  }
  if (kind == "signal") {
    out.notify = SIGEV_SIGNAL;
  } else if (kind == "none") {
    out.notify = SIGEV_NONE;
  } else if (kind == "thread") {
    out.notify = SIGEV_THREAD;
  } else {
    return false;
  }
  if (whose == "tid") {
    out.notify |= SIGEV_THREAD_ID;
    out.thread = static_cast<pid_t>(*task);
  }
  return true;
}

void put(pb::ItimerEntry& out, const itimerval& value) {
  out.set_isec(static_cast<std::uint64_t>(value.it_interval.tv_sec));
  out.set_iusec(static_cast<std::uint64_t>(value.it_interval.tv_usec));
  out.set_vsec(static_cast<std::uint64_t>(value.it_value.tv_sec));
  out.set_vusec(static_cast<std::uint64_t>(value.it_value.tv_usec));
}

Result<itimerval> interval_timer(const pb::ItimerEntry& entry, NsPid pid) {
  if (entry.iusec() >= 1'000'000 || entry.vusec() >= 1'000'000 || entry.isec() > 0x7fffffffffff ||
      entry.vsec() > 0x7fffffffffff) {
    return fail(Kind::corrupt, "an interval timer of pid {} has an impossible time", pid);
  }
  itimerval value{};
  value.it_interval = {static_cast<time_t>(entry.isec()), static_cast<suseconds_t>(entry.iusec())};
  value.it_value = {static_cast<time_t>(entry.vsec()), static_cast<suseconds_t>(entry.vusec())};
  return value;
}

Result<void> create(const pb::PosixTimerEntry& entry, NsPid pid, tracee::Batch& batch) {
  if (entry.insec() >= 1'000'000'000 || entry.vnsec() >= 1'000'000'000 || entry.isec() > 0x7fffffffffff ||
      entry.vsec() > 0x7fffffffffff || entry.it_id() > 0x7fffffff || entry.si_signo() > 64) {
    return fail(Kind::corrupt, "POSIX timer {} of pid {} has an impossible time, id or signal", entry.it_id(), pid);
  }
  const KernelSigevent event{entry.sival_ptr(),
                             static_cast<std::int32_t>(entry.si_signo()),
                             static_cast<std::int32_t>(entry.it_sigev_notify()),
                             entry.notify_thread_id(),
                             {}};
  batch.must("timer_create", SYS_timer_create,
             {static_cast<std::int32_t>(entry.clock_id()), batch.object(event),
              batch.object(static_cast<std::int32_t>(entry.it_id()))});
  return {};
}

void arm(const pb::PosixTimerEntry& entry, tracee::Batch& batch) {
  itimerspec value{};
  value.it_interval = {static_cast<time_t>(entry.isec()), static_cast<long>(entry.insec())};
  value.it_value = {static_cast<time_t>(entry.vsec()), static_cast<long>(entry.vnsec())};
  if (value.it_value.tv_sec == 0 && value.it_value.tv_nsec == 0) {
    return;  // not armed
  }
  batch.must("timer_settime", SYS_timer_settime, {entry.it_id(), 0, batch.object(value), 0});
}

// A timer of a thread's own processor time belongs to who makes it, and who it tells is who made it: so does
// every profiler.
tracee::Thread* own_maker(RestoreTask& task, const pb::PosixTimerEntry& timer) {
  // The kernel shows CLOCK_THREAD_CPUTIME_ID as the clock of thread 0 (kernel/time/posix-cpu-timers.c,
  // THREAD_CLOCK): a negative number whose upper bits are those of the thread's, inverted.
  const int clock = static_cast<int>(timer.clock_id());
  constexpr int kPerThread = 4;
  const bool own = clock == CLOCK_THREAD_CPUTIME_ID || (clock < 0 && (clock & kPerThread) != 0 && ~(clock >> 3) == 0);
  if (!own || (timer.it_sigev_notify() & SIGEV_THREAD_ID) == 0) {
    return nullptr;
  }
  for (const RestoreThread& thread : task.threads) {
    if (thread.index != 0 && thread.ns_tid.value == timer.notify_thread_id()) {
      return &task.process.threads().at(thread.index);
    }
  }
  return nullptr;
}

// Ids are given out upwards from 0, so those that lie between are made and deleted again.
Result<void> count_up(const std::vector<const pb::PosixTimerEntry*>& timers, NsPid pid, tracee::Batch& batch) {
  if (timers.back()->it_id() > kMaxCountedId) {
    return fail(Kind::unsupported,
                "pid {} has POSIX timer {}; a kernel before 6.15 gives such an id only after {} others", pid,
                timers.back()->it_id(), timers.back()->it_id());
  }
  std::uint32_t id = 0;
  for (const pb::PosixTimerEntry* timer : timers) {
    for (; id < timer->it_id(); ++id) {
      const KernelSigevent none{0, 0, SIGEV_NONE, 0, {}};
      batch.must("timer_create", SYS_timer_create, {CLOCK_MONOTONIC, batch.object(none), batch.room(8)});
      batch.must("timer_delete", SYS_timer_delete, {id});
    }
    FERRY_CHECK(create(*timer, pid, batch));
    ++id;
  }
  return {};
}

}  // namespace

Result<std::vector<PosixTimer>> parse_timers(std::string_view text) {
  std::vector<PosixTimer> out;
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    bool good = true;
    if (const auto id = after(line, "ID: "); !id.empty()) {
      const auto number = sys::parse_number(id);
      good = number && *number <= 0x7fffffff;
      out.emplace_back().id = good ? static_cast<int>(*number) : 0;
    } else if (out.empty()) {
      good = line.empty();
    } else if (const auto signal = after(line, "signal: "); !signal.empty()) {
      good = parse_signal(signal, out.back());
    } else if (const auto notify = after(line, "notify: "); !notify.empty()) {
      good = parse_notify(notify, out.back());
    } else if (const auto clock = after(line, "ClockID: "); !clock.empty()) {
      const auto number = signed_number(clock);
      good = number.has_value();
      out.back().clock = good ? static_cast<int>(*number) : 0;
    }
    if (!good) {
      return fail(Kind::corrupt, "the line \"{}\" of a list of timers is not understood", line);
    }
  }
  return out;
}

Answers ask(DumpTask& task, tracee::Batch& batch) {
  std::array<tracee::Data, 3> intervals{};
  for (int which : {ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF}) {
    intervals[static_cast<std::size_t>(which)] = batch.room(sizeof(itimerval));
    batch.must("getitimer", SYS_getitimer, {which, intervals[static_cast<std::size_t>(which)]});
  }
  // The file is missing without CONFIG_POSIX_TIMERS; then there are no such timers.
  auto text = sys::read_file_at(task.proc.get(), "timers");
  auto listed = text.has_value()                  ? parse_timers(*text)
                : text.error().os_errno == ENOENT ? Result<std::vector<PosixTimer>>(std::vector<PosixTimer>())
                                                  : Result<std::vector<PosixTimer>>(tl::unexpect, text.error());
  struct Asked {
    PosixTimer timer;
    tracee::Data times;
    tracee::Value overrun;
  };
  std::vector<Asked> asked;
  if (listed.has_value()) {
    for (const PosixTimer& timer : *listed) {
      const tracee::Data room = batch.room(sizeof(itimerspec));
      batch.must("timer_gettime", SYS_timer_gettime, {timer.id, room});
      asked.push_back({timer, room, batch.may(SYS_timer_getoverrun, {timer.id})});
    }
  }
  return [&task, intervals, listed = std::move(listed),
          asked = std::move(asked)](const tracee::Replies& replies) -> Result<void> {
    if (!listed.has_value()) {
      return tl::unexpected<Error>(listed.error());
    }
    auto& out = *task.core->mutable_tc()->mutable_timers();
    put(*out.mutable_real(), replies.object<itimerval>(intervals[ITIMER_REAL]));
    put(*out.mutable_virt(), replies.object<itimerval>(intervals[ITIMER_VIRTUAL]));
    put(*out.mutable_prof(), replies.object<itimerval>(intervals[ITIMER_PROF]));
    for (const Asked& a : asked) {
      pb::PosixTimerEntry& entry = *out.add_posix();
      const auto times = replies.object<itimerspec>(a.times);
      entry.set_it_id(static_cast<std::uint32_t>(a.timer.id));
      entry.set_clock_id(static_cast<std::uint32_t>(a.timer.clock));
      entry.set_si_signo(static_cast<std::uint32_t>(a.timer.signal));
      entry.set_it_sigev_notify(static_cast<std::uint32_t>(a.timer.notify));
      entry.set_sival_ptr(a.timer.value);
      entry.set_overrun(replies[a.overrun] > 0 ? static_cast<std::uint32_t>(replies[a.overrun]) : 0);
      entry.set_isec(static_cast<std::uint64_t>(times.it_interval.tv_sec));
      entry.set_insec(static_cast<std::uint64_t>(times.it_interval.tv_nsec));
      entry.set_vsec(static_cast<std::uint64_t>(times.it_value.tv_sec));
      entry.set_vnsec(static_cast<std::uint64_t>(times.it_value.tv_nsec));
      if ((a.timer.notify & SIGEV_THREAD_ID) != 0) {
        const auto thread = std::find_if(task.threads.begin(), task.threads.end(),
                                         [&](const DumpThread& t) { return t.tid.value == a.timer.thread; });
        if (thread == task.threads.end()) {
          entry.set_it_sigev_notify(SIGEV_NONE);  // its thread has ended, and nobody is told any more
          continue;
        }
        entry.set_notify_thread_id(thread->ns_tid.value);
      }
    }
    return {};
  };
}

Result<void> collect(DumpTask& task, DumpContext&) {
  for (const pb::PosixTimerEntry& timer : task.core->tc().timers().posix()) {
    // A negative clock names a process, a thread or a descriptor; the last has both low bits set
    // (clock_getcpuclockid(3), include/linux/posix-timers.h).
    constexpr int kDescriptorClock = 3;
    const int clock = static_cast<int>(timer.clock_id());
    if (clock < 0 && (clock & 7) == kDescriptorClock) {
      return fail(Kind::unsupported, "POSIX timer {} of pid {} runs on the clock of a device", timer.it_id(), task.pid);
    }
  }
  return {};
}

Result<void> restore(RestoreTask& task, RestoreContext&, tracee::Batch& batch) {
  const auto& timers = task.core->tc().timers();
  const std::array<const pb::ItimerEntry*, 3> intervals = {&timers.real(), &timers.virt(), &timers.prof()};
  std::vector<const pb::PosixTimerEntry*> sorted;
  for (const pb::PosixTimerEntry& timer : timers.posix()) {
    sorted.push_back(&timer);
  }
  std::sort(sorted.begin(), sorted.end(), [](const auto* a, const auto* b) { return a->it_id() < b->it_id(); });
  for (std::size_t i = 1; i < sorted.size(); ++i) {
    if (sorted[i - 1]->it_id() == sorted[i]->it_id()) {
      return fail(Kind::corrupt, "pid {} has POSIX timer {} twice", task.ns_pid(), sorted[i]->it_id());
    }
  }
  if (!sorted.empty()) {
    if (::prctl(kCreateRestoreIds, kGet, 0, 0, 0) >= 0) {
      batch.must("prctl(PR_TIMER_CREATE_RESTORE_IDS)", SYS_prctl, {kCreateRestoreIds, kOn, 0, 0, 0});
      for (const auto* timer : sorted) {
        if (tracee::Thread* maker = own_maker(task, *timer); maker != nullptr) {
          tracee::Batch own;
          own.must("prctl(PR_TIMER_CREATE_RESTORE_IDS)", SYS_prctl, {kCreateRestoreIds, kOn, 0, 0, 0});
          FERRY_CHECK(create(*timer, task.ns_pid(), own));
          own.must("prctl(PR_TIMER_CREATE_RESTORE_IDS)", SYS_prctl, {kCreateRestoreIds, kOff, 0, 0, 0});
          FERRY_CHECK(task.process.run(*maker, own));
        } else {
          FERRY_CHECK(create(*timer, task.ns_pid(), batch));
        }
      }
      batch.must("prctl(PR_TIMER_CREATE_RESTORE_IDS)", SYS_prctl, {kCreateRestoreIds, kOff, 0, 0, 0});
    } else {
      FERRY_CHECK(count_up(sorted, task.ns_pid(), batch));
    }
  }
  for (const auto* timer : sorted) {
    arm(*timer, batch);
  }
  for (int which : {ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF}) {
    FERRY_TRY(const itimerval value, interval_timer(*intervals[static_cast<std::size_t>(which)], task.ns_pid()));
    if (value.it_value.tv_sec != 0 || value.it_value.tv_usec != 0) {
      batch.must("setitimer", SYS_setitimer, {which, batch.object(value), 0});
    }
  }
  return {};
}

}  // namespace ferry::state::timers

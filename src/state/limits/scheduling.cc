#include "state/limits/scheduling.h"

#include <linux/sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

namespace ferry::state::limits {
namespace {

// sched_getscheduler(2) adds it to the policy, and so does CRIU's image.
constexpr std::uint32_t kResetOnFork = 0x40000000;
constexpr int kIoprioProcess = 1, kIoprioClassShift = 13;  // ioprio_set(2): IOPRIO_WHO_PROCESS
constexpr int kIoprioBestEffort = 2;

// struct sched_attr of sched_setattr(2) since Linux 5.3; <linux/sched/types.h> collides with <sched.h>.
struct SchedAttr {
  std::uint32_t size, policy;
  std::uint64_t flags;
  std::int32_t nice;
  std::uint32_t priority;
  std::uint64_t runtime, deadline, period;
  std::uint32_t util_min, util_max;
};
static_assert(sizeof(SchedAttr) == 56);
constexpr std::uint32_t kFullUtilization = 1024;    // SCHED_CAPACITY_SCALE
constexpr std::uint64_t kUtilizationClamps = 0x60;  // SCHED_FLAG_UTIL_CLAMP_MIN, _MAX

Result<SchedAttr> scheduling(HostPid tid) {
  SchedAttr out{};
  if (::syscall(SYS_sched_getattr, tid.value, &out, sizeof out, 0) != 0) {
    return sys_fail(fmt::format("sched_getattr({})", tid));
  }
  return out;
}

Result<std::string> affinity(HostPid tid) {
  std::string mask(8192, '\0');
  const long got = ::syscall(SYS_sched_getaffinity, tid.value, mask.size(), mask.data());
  if (got < 0) {
    return sys_fail(fmt::format("sched_getaffinity({})", tid));
  }
  mask.resize(static_cast<std::size_t>(got));
  while (!mask.empty() && mask.back() == '\0') {
    mask.pop_back();
  }
  return mask;
}

// Whether every processor that is online is in the mask: then nobody chose.
bool everything(const std::string& mask) {
  long set = 0;
  for (const char byte : mask) {
    set += __builtin_popcount(static_cast<unsigned char>(byte));
  }
  static const long kOnline = ::sysconf(_SC_NPROCESSORS_ONLN);  // reads a file each time
  return set >= kOnline;
}

// What ioprio_get(2) tells of a thread that never set one: best effort, at the level of its nice value.
int default_io_priority(std::int32_t nice) { return kIoprioBestEffort << kIoprioClassShift | (nice + 20) / 5; }

Result<int> io_priority(HostPid tid) {
  const long got = ::syscall(SYS_ioprio_get, kIoprioProcess, tid.value);
  if (got < 0) {
    return sys_fail(fmt::format("ioprio_get({})", tid));
  }
  return static_cast<int>(got);
}

Result<void> restore_policy(const RestoreThread& thread) {
  const auto& core = thread.core->thread_core();
  FERRY_TRY(const SchedAttr have, scheduling(thread.tid));
  SchedAttr want{};
  want.size = sizeof want;
  want.policy = core.sched_policy() & ~kResetOnFork;
  want.flags = (core.sched_policy() & kResetOnFork) != 0 ? SCHED_FLAG_RESET_ON_FORK : 0;
  want.nice = core.sched_nice();
  want.priority = core.sched_prio();
  want.runtime = core.ferry_sched_runtime_ns();
  want.deadline = core.ferry_sched_deadline_ns();
  want.period = core.ferry_sched_period_ns();
  if (core.has_ferry_sched_util_min()) {
    want.util_min = core.ferry_sched_util_min();
    want.util_max = core.ferry_sched_util_max();
    want.flags |= kUtilizationClamps;
  }
  const bool same = have.policy == want.policy && have.nice == want.nice && have.priority == want.priority &&
                    (have.flags & SCHED_FLAG_RESET_ON_FORK) == want.flags && want.policy != SCHED_DEADLINE;
  if (!same && ::syscall(SYS_sched_setattr, thread.tid.value, &want, 0) != 0) {
    const int saved = errno;
    if (want.policy == SCHED_DEADLINE) {
      return sys_fail(saved,
                      fmt::format("sched_setattr(task {}, SCHED_DEADLINE, {} of {} ns): this host does not admit it",
                                  thread.ns_tid, want.runtime, want.period));
    }
    return sys_fail(saved, fmt::format("sched_setattr(task {}, policy {}, nice {}, priority {})", thread.ns_tid,
                                       want.policy, want.nice, want.priority));
  }
  return {};
}

Result<void> restore_affinity(const RestoreThread& thread) {
  const auto& core = thread.core->thread_core();
  if (!core.has_ferry_cpu_affinity()) {
    return {};
  }
  const std::string& mask = core.ferry_cpu_affinity();
  FERRY_TRY(const std::string have, affinity(thread.tid));
  if (have == mask) {
    return {};
  }
  if (::syscall(SYS_sched_setaffinity, thread.tid.value, mask.size(), mask.data()) != 0) {
    return sys_fail(
        fmt::format("sched_setaffinity(task {}): the processors it was bound to are not all here", thread.ns_tid));
  }
  return {};
}

Result<void> restore_io_priority(const RestoreThread& thread) {
  const auto& core = thread.core->thread_core();
  if (core.has_ferry_io_priority() &&
      ::syscall(SYS_ioprio_set, kIoprioProcess, thread.tid.value, core.ferry_io_priority()) != 0) {
    return sys_fail(fmt::format("ioprio_set(task {}, {:#x})", thread.ns_tid, core.ferry_io_priority()));
  }
  return {};
}

}  // namespace

Result<void> collect_scheduling(DumpThread& thread) {
  auto& core = *thread.core->mutable_thread_core();
  FERRY_TRY(const SchedAttr attr, scheduling(thread.tid));
  if (attr.policy == SCHED_DEADLINE) {
    core.set_ferry_sched_runtime_ns(attr.runtime);
    core.set_ferry_sched_deadline_ns(attr.deadline);
    core.set_ferry_sched_period_ns(attr.period);
  }
  // 0 and 0 where the kernel has no clamps.
  const bool clamps = attr.util_max != 0 && (attr.util_min != 0 || attr.util_max != kFullUtilization);
  if (clamps && attr.policy != SCHED_FIFO && attr.policy != SCHED_RR) {
    core.set_ferry_sched_util_min(attr.util_min);
    core.set_ferry_sched_util_max(attr.util_max);
  }
  const bool reset = (attr.flags & SCHED_FLAG_RESET_ON_FORK) != 0;
  core.set_sched_policy(attr.policy | (reset ? kResetOnFork : 0));
  core.set_sched_nice(attr.nice);
  if (attr.policy == SCHED_FIFO || attr.policy == SCHED_RR) {
    core.set_sched_prio(attr.priority);
  }
  FERRY_TRY(const std::string mask, affinity(thread.tid));
  if (!everything(mask)) {
    core.set_ferry_cpu_affinity(mask);
  }
  FERRY_TRY(const int priority, io_priority(thread.tid));
  if (priority >> kIoprioClassShift != 0 && priority != default_io_priority(attr.nice)) {
    core.set_ferry_io_priority(static_cast<std::uint32_t>(priority));
  }
  return {};
}

Result<void> restore_scheduling(const RestoreThread& thread) {
  FERRY_CHECK(restore_policy(thread));
  FERRY_CHECK(restore_affinity(thread));
  return restore_io_priority(thread);
}

}  // namespace ferry::state::limits

#include "state/limits/limits.h"

#include <fcntl.h>
#include <linux/membarrier.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "sys/file.h"

namespace ferry::state::limits {
namespace {

constexpr int kLimits = 16;             // RLIM_NLIMITS
constexpr std::size_t kNameSize = 16;   // TASK_COMM_LEN
constexpr std::uint32_t kUnsetLogin = 0xffffffff;
constexpr int kGetMdwe = 66, kSetMdwe = 65;  // PR_GET_MDWE, PR_SET_MDWE: since Linux 6.3
constexpr int kGetMemoryMerge = 68;          // PR_GET_MEMORY_MERGE: since Linux 6.4
// sched_getscheduler(2) adds it to the policy, and so does CRIU's image.
constexpr std::uint32_t kResetOnFork = 0x40000000;
constexpr int kIoprioProcess = 1, kIoprioClassShift = 13;  // ioprio_set(2): IOPRIO_WHO_PROCESS
constexpr int kIoprioBestEffort = 2;

constexpr std::array kLimitNames = {"RLIMIT_CPU",    "RLIMIT_FSIZE",  "RLIMIT_DATA",       "RLIMIT_STACK",
                                    "RLIMIT_CORE",   "RLIMIT_RSS",    "RLIMIT_NPROC",      "RLIMIT_NOFILE",
                                    "RLIMIT_MEMLOCK", "RLIMIT_AS",    "RLIMIT_LOCKS",      "RLIMIT_SIGPENDING",
                                    "RLIMIT_MSGQUEUE", "RLIMIT_NICE", "RLIMIT_RTPRIO",     "RLIMIT_RTTIME"};
static_assert(kLimitNames.size() == kLimits);

// struct sched_attr of sched_setattr(2), its first version; <linux/sched/types.h> collides with <sched.h>.
struct SchedAttr {
  std::uint32_t size, policy;
  std::uint64_t flags;
  std::int32_t nice;
  std::uint32_t priority;
  std::uint64_t runtime, deadline, period;
};
static_assert(sizeof(SchedAttr) == 48);

struct Limit {
  std::uint64_t soft = 0, hard = 0;
  auto operator<=>(const Limit&) const = default;
};
static_assert(sizeof(Limit) == 16);

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
  // sysconf(3) opens a file of sysfs each time; processors do not come and go within a checkpoint.
  static const long kOnline = ::sysconf(_SC_NPROCESSORS_ONLN);
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

Result<std::int32_t> oom_score(HostPid pid) {
  FERRY_TRY(std::string text, sys::read_file(fmt::format("/proc/{}/oom_score_adj", pid)));
  const bool minus = text.rfind('-', 0) == 0;
  if (!text.empty() && text.back() == '\n') {
    text.pop_back();
  }
  const auto value = sys::parse_number(std::string_view(text).substr(minus ? 1 : 0));
  if (!value || *value > 1000) {
    return fail(Kind::corrupt, "/proc/{}/oom_score_adj holds \"{}\"", pid, text);
  }
  return minus ? -static_cast<std::int32_t>(*value) : static_cast<std::int32_t>(*value);
}

// nullopt on a kernel without audit.
Result<std::optional<std::uint32_t>> login_id(HostPid pid) {
  auto text = sys::read_file(fmt::format("/proc/{}/loginuid", pid));
  if (!text.has_value() && text.error().os_errno == ENOENT) {
    return std::optional<std::uint32_t>();
  }
  if (!text.has_value()) {
    return tl::unexpected<Error>(std::move(text).error());
  }
  const auto value = sys::parse_number(*text);
  if (!value || *value > kUnsetLogin) {
    return fail(Kind::corrupt, "/proc/{}/loginuid holds \"{}\"", pid, *text);
  }
  return std::optional<std::uint32_t>(static_cast<std::uint32_t>(*value));
}

Result<void> restore_limits(const RestoreTask& task) {
  const auto& limits = task.core->tc().rlimits();
  if (limits.rlimits_size() > kLimits) {
    return fail(Kind::corrupt, "pid {} has {} resource limits, not {}", task.ns_pid(), limits.rlimits_size(), kLimits);
  }
  for (int i = 0; i < limits.rlimits_size(); ++i) {
    const Limit want{limits.rlimits(i).cur(), limits.rlimits(i).max()};
    const char* name = kLimitNames[static_cast<std::size_t>(i)];
    Limit have;
    if (::syscall(SYS_prlimit64, task.pid.value, i, nullptr, &have) != 0) {
      return sys_fail(fmt::format("prlimit({}, {})", task.pid, name));
    }
    if (have == want) {
      continue;
    }
    if (::syscall(SYS_prlimit64, task.pid.value, i, &want, nullptr) != 0) {
      const int saved = errno;
      return sys_fail(saved, fmt::format("setting {} of pid {} to {}:{} (it has {}:{}; to raise a hard limit ferry needs "
                                         "CAP_SYS_RESOURCE)",
                                         name, task.ns_pid(), want.soft, want.hard, have.soft, have.hard));
    }
  }
  return {};
}

Result<void> restore_oom_score(const RestoreTask& task) {
  const auto& tc = task.core->tc();
  if (!tc.has_oom_score_adj()) {
    return {};
  }
  FERRY_TRY(const std::int32_t have, oom_score(task.pid));
  if (have == tc.oom_score_adj()) {
    return {};
  }
  return sys::write_file(fmt::format("/proc/{}/oom_score_adj", task.pid), std::to_string(tc.oom_score_adj()))
      .during("setting the OOM score of pid {} to {} (to lower it ferry needs CAP_SYS_RESOURCE)", task.ns_pid(),
              tc.oom_score_adj());
}

// Only the task itself may change it (loginuid of another: EPERM, fs/proc/base.c).
Result<void> restore_login(const RestoreTask& task, tracee::Batch& batch) {
  const auto& tc = task.core->tc();
  if (!tc.has_loginuid()) {
    return {};
  }
  FERRY_TRY(const auto have, login_id(task.pid));
  if (!have || *have == tc.loginuid()) {
    return {};
  }
  const std::string text = std::to_string(tc.loginuid());
  const tracee::Value fd = batch.must("open(/proc/self/loginuid)", SYS_openat,
                                      {AT_FDCWD, batch.string("/proc/self/loginuid"), O_WRONLY | O_CLOEXEC, 0});
  batch.must("writing /proc/self/loginuid", SYS_write, {fd, batch.bytes(std::as_bytes(std::span(text))), text.size()});
  batch.must("close", SYS_close, {fd});
  return {};
}

Result<void> restore_scheduling(const RestoreThread& thread) {
  const auto& core = thread.core->thread_core();
  FERRY_TRY(const SchedAttr have, scheduling(thread.tid));
  SchedAttr want{};
  want.size = sizeof want;
  want.policy = core.sched_policy() & ~kResetOnFork;
  want.flags = (core.sched_policy() & kResetOnFork) != 0 ? SCHED_FLAG_RESET_ON_FORK : 0;
  want.nice = core.sched_nice();
  want.priority = core.sched_prio();
  if (want.policy == SCHED_DEADLINE) {
    return fail(Kind::unsupported, "task {} has the policy SCHED_DEADLINE", thread.ns_tid);
  }
  const bool same = have.policy == want.policy && have.nice == want.nice &&
                    have.priority == want.priority &&
                    (have.flags & SCHED_FLAG_RESET_ON_FORK) == want.flags;
  if (!same && ::syscall(SYS_sched_setattr, thread.tid.value, &want, 0) != 0) {
    return sys_fail(fmt::format("sched_setattr(task {}, policy {}, nice {}, priority {})", thread.ns_tid,
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
    return sys_fail(fmt::format("sched_setaffinity(task {}): the processors it was bound to are not all here",
                                thread.ns_tid));
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

Result<void> preflight(HostPid pid, const DumpOptions&) {
  FERRY_TRY(const UniqueFd tasks, sys::open(fmt::format("/proc/{}/task", pid), O_RDONLY | O_DIRECTORY));
  FERRY_TRY(const auto tids, sys::numeric_entries(tasks.get(), fmt::format("/proc/{}/task", pid)));
  for (const int tid : tids) {
    const auto attr = scheduling(HostPid(tid));
    if (attr.has_value() && attr->policy == SCHED_DEADLINE) {
      return fail(Kind::unsupported, "task {} of pid {} has the policy SCHED_DEADLINE, which cannot be carried", tid, pid);
    }
  }
  return {};
}

Answers ask(DumpTask& task, tracee::Batch& batch) {
  std::array<tracee::Data, kLimits> limits{};
  for (int i = 0; i < kLimits; ++i) {
    // From outside it takes CAP_SYS_RESOURCE if the ids differ (prlimit(2)).
    limits[static_cast<std::size_t>(i)] = batch.room(sizeof(Limit));
    batch.must("prlimit", SYS_prlimit64, {0, i, 0, limits[static_cast<std::size_t>(i)]});
  }
  const tracee::Data reaper = batch.room(sizeof(int));
  batch.must("prctl(PR_GET_CHILD_SUBREAPER)", SYS_prctl, {PR_GET_CHILD_SUBREAPER, reaper, 0, 0, 0});
  const tracee::Data tsc = batch.room(sizeof(int));
  batch.must("prctl(PR_GET_TSC)", SYS_prctl, {PR_GET_TSC, tsc, 0, 0, 0});
  const tracee::Value thp = batch.must("prctl(PR_GET_THP_DISABLE)", SYS_prctl, {PR_GET_THP_DISABLE, 0, 0, 0, 0});
  const tracee::Value persona = batch.must("personality", SYS_personality, {0xffffffffU});
  const tracee::Value merge = batch.may(SYS_prctl, {kGetMemoryMerge, 0, 0, 0, 0});
  const tracee::Value mdwe = batch.may(SYS_prctl, {kGetMdwe, 0, 0, 0, 0});
  constexpr int kGetRegistrations = 1 << 9;  // MEMBARRIER_CMD_GET_REGISTRATIONS, since Linux 6.3
  const tracee::Value barriers = batch.may(SYS_membarrier, {kGetRegistrations, 0, 0});
  return [=, &task](const tracee::Replies& replies) -> Result<void> {
    auto& tc = *task.core->mutable_tc();
    auto& out = *tc.mutable_rlimits();
    out.clear_rlimits();
    for (const tracee::Data& room : limits) {
      const auto limit = replies.object<Limit>(room);
      pb::RlimitEntry& entry = *out.add_rlimits();
      entry.set_cur(limit.soft);
      entry.set_max(limit.hard);
    }
    // Seccomp's strict mode turns it off as well, and will do so again.
    if (replies.object<int>(tsc) != PR_TSC_ENABLE && task.status.seccomp != SECCOMP_MODE_STRICT) {
      return fail(Kind::unsupported, "pid {} has its time stamp counter disabled (PR_SET_TSC)", task.pid);
    }
    if (replies[merge] > 0) {
      return fail(Kind::unsupported, "pid {} has memory merging turned on (PR_SET_MEMORY_MERGE)", task.pid);
    }
    if (replies[thp] > 1) {
      return fail(Kind::unsupported, "pid {} has PR_SET_THP_DISABLE with flags {:#x}", task.pid, replies[thp] >> 1);
    }
    task.mm->set_thp_disabled(replies[thp] == 1);
    tc.set_personality(static_cast<std::uint32_t>(replies[persona]));
    tc.set_child_subreaper(replies.object<int>(reaper) != 0);
    if (replies[mdwe] > 0) {
      tc.set_ferry_mdwe(static_cast<std::uint32_t>(replies[mdwe]));
    }
    if (replies[barriers] > 0) {
      tc.set_membarrier_registration_mask(static_cast<std::uint32_t>(replies[barriers]));
    }
    return {};
  };
}

Answers ask_thread(DumpTask& task, DumpThread& thread, tracee::Batch& batch) {
  const tracee::Data name = batch.room(kNameSize);
  batch.must("prctl(PR_GET_NAME)", SYS_prctl, {PR_GET_NAME, name, 0, 0, 0});
  const tracee::Value slack = batch.must("prctl(PR_GET_TIMERSLACK)", SYS_prctl, {PR_GET_TIMERSLACK, 0, 0, 0, 0});
  return [&task, &thread, name, slack](const tracee::Replies& replies) -> Result<void> {
    const auto bytes = replies.bytes(name);
    const std::string text(reinterpret_cast<const char*>(bytes.data()),
                           ::strnlen(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
    auto& core = *thread.core->mutable_thread_core();
    core.set_comm(text);
    if (thread.index == 0) {
      task.core->mutable_tc()->set_comm(text);
    }
    core.set_ferry_timerslack_ns(static_cast<std::uint64_t>(replies[slack]));
    return {};
  };
}

Result<void> collect(DumpTask& task, DumpContext&) {
  auto& tc = *task.core->mutable_tc();
  FERRY_TRY(const std::int32_t oom, oom_score(task.pid));
  tc.set_oom_score_adj(oom);
  FERRY_TRY(const auto login, login_id(task.pid));
  if (login) {
    tc.set_loginuid(*login);
  }
  return {};
}

Result<void> collect_thread(DumpTask&, DumpThread& thread, DumpContext&) {
  auto& core = *thread.core->mutable_thread_core();
  FERRY_TRY(const SchedAttr attr, scheduling(thread.tid));
  if (attr.policy == SCHED_DEADLINE) {
    return fail(Kind::unsupported, "task {} has the policy SCHED_DEADLINE, which cannot be carried", thread.tid);
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

Result<void> restore(RestoreTask& task, RestoreContext&, tracee::Batch& batch) {
  const auto& tc = task.core->tc();
  FERRY_CHECK(restore_limits(task));
  FERRY_CHECK(restore_oom_score(task));
  FERRY_CHECK(restore_login(task, batch));
  if (tc.child_subreaper()) {
    batch.must("prctl(PR_SET_CHILD_SUBREAPER)", SYS_prctl, {PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0});
  }
  if (task.mm->thp_disabled()) {
    batch.must("prctl(PR_SET_THP_DISABLE)", SYS_prctl, {PR_SET_THP_DISABLE, 1, 0, 0, 0});
  }
  if (tc.ferry_mdwe() != 0) {
    batch.must("prctl(PR_SET_MDWE)", SYS_prctl, {kSetMdwe, tc.ferry_mdwe(), 0, 0, 0});
  }
  for (int bit = 0; bit < 32; ++bit) {
    // Each registration is reported as the bit of the command that makes it (membarrier(2)).
    if (((tc.membarrier_registration_mask() >> bit) & 1) != 0) {
      batch.must("membarrier", SYS_membarrier, {1U << bit, 0, 0});
    }
  }
  return {};
}

Result<void> restore_thread(RestoreTask& task, RestoreThread& thread, RestoreContext&, tracee::Batch& batch) {
  const auto& core = thread.core->thread_core();
  FERRY_CHECK(restore_scheduling(thread));
  FERRY_CHECK(restore_affinity(thread));
  FERRY_CHECK(restore_io_priority(thread));
  const std::string& name = core.has_comm() || thread.index != 0 ? core.comm() : task.core->tc().comm();
  batch.must("prctl(PR_SET_NAME)", SYS_prctl, {PR_SET_NAME, batch.string(name), 0, 0, 0});
  if (core.ferry_timerslack_ns() != 0) {  // 0: a real-time thread, or a set of CRIU's
    batch.must("prctl(PR_SET_TIMERSLACK)", SYS_prctl, {PR_SET_TIMERSLACK, core.ferry_timerslack_ns(), 0, 0, 0});
  }
  if (const auto own = static_cast<std::uint32_t>(::personality(0xffffffff)); own != task.core->tc().personality()) {
    batch.must("personality", SYS_personality, {task.core->tc().personality()});
  }
  return {};
}

}  // namespace ferry::state::limits

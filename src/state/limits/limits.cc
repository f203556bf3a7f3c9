#include "state/limits/limits.h"

#include <fcntl.h>
#include <linux/membarrier.h>
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

constexpr int kLimits = 16;  // RLIM_NLIMITS
constexpr std::uint32_t kUnsetLogin = 0xffffffff;
constexpr int kGetMdwe = 66, kSetMdwe = 65;                // PR_GET_MDWE, PR_SET_MDWE: since Linux 6.3
constexpr int kSetMemoryMerge = 67, kGetMemoryMerge = 68;  // PR_SET_MEMORY_MERGE, PR_GET_…: since Linux 6.4

constexpr std::array kLimitNames = {"RLIMIT_CPU",      "RLIMIT_FSIZE", "RLIMIT_DATA",   "RLIMIT_STACK",
                                    "RLIMIT_CORE",     "RLIMIT_RSS",   "RLIMIT_NPROC",  "RLIMIT_NOFILE",
                                    "RLIMIT_MEMLOCK",  "RLIMIT_AS",    "RLIMIT_LOCKS",  "RLIMIT_SIGPENDING",
                                    "RLIMIT_MSGQUEUE", "RLIMIT_NICE",  "RLIMIT_RTPRIO", "RLIMIT_RTTIME"};
static_assert(kLimitNames.size() == kLimits);

struct Limit {
  std::uint64_t soft = 0, hard = 0;
  auto operator<=>(const Limit&) const = default;
};
static_assert(sizeof(Limit) == 16);

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

Result<void> restore_core_filter(const RestoreTask& task) {
  const auto& tc = task.core->tc();
  if (!tc.has_ferry_coredump_filter()) {
    return {};
  }
  const std::string path = fmt::format("/proc/{}/coredump_filter", task.pid);
  const std::string want = fmt::format("{:08x}\n", tc.ferry_coredump_filter());
  const auto have = sys::read_file(path);
  if (!have.has_value() || *have == want) {
    return {};  // a kernel without core dumps, or nothing to do
  }
  return sys::write_file(path, "0x" + want);
}

Result<void> restore_autogroup(const RestoreTask& task) {
  const auto& tc = task.core->tc();
  if (!tc.has_ferry_autogroup_nice()) {
    return {};
  }
  auto written =
      sys::write_file(fmt::format("/proc/{}/autogroup", task.pid), std::to_string(tc.ferry_autogroup_nice()));
  if (!written.has_value() && written.error().os_errno == ENOENT) {
    return {};  // this kernel does not group sessions
  }
  return std::move(written).during("nice value of the session of pid {}", task.ns_pid());
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
      return sys_fail(saved,
                      fmt::format("setting {} of pid {} to {}:{} (it has {}:{}; to raise a hard limit ferry needs "
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

}  // namespace

Answers ask(DumpTask& task, tracee::Batch& batch) {
  std::array<tracee::Data, kLimits> limits{};
  for (int i = 0; i < kLimits; ++i) {
    // From outside it takes CAP_SYS_RESOURCE if the ids differ (prlimit(2)).
    limits[static_cast<std::size_t>(i)] = batch.room(sizeof(Limit));
    batch.must("prlimit", SYS_prlimit64, {0, i, 0, limits[static_cast<std::size_t>(i)]});
  }
  const tracee::Data reaper = batch.room(sizeof(int));
  batch.must("prctl(PR_GET_CHILD_SUBREAPER)", SYS_prctl, {PR_GET_CHILD_SUBREAPER, reaper, 0, 0, 0});
  const tracee::Value thp = batch.must("prctl(PR_GET_THP_DISABLE)", SYS_prctl, {PR_GET_THP_DISABLE, 0, 0, 0, 0});
  const tracee::Value persona = batch.must("personality", SYS_personality, {0xffffffffU});
  const tracee::Value merge = batch.may(SYS_prctl, {kGetMemoryMerge, 0, 0, 0, 0});
  const tracee::Value mdwe = batch.may(SYS_prctl, {kGetMdwe, 0, 0, 0, 0});
  constexpr int kGetRegistrations = 1 << 9;  // MEMBARRIER_CMD_GET_REGISTRATIONS, since Linux 6.3
  const tracee::Value barriers = batch.may(SYS_membarrier, {kGetRegistrations, 0, 0});
  const tracee::Value ldt = batch.may(SYS_modify_ldt, {0, batch.room(8), 8});
  return [=, &task](const tracee::Replies& replies) -> Result<void> {
    auto& tc = *task.core->mutable_tc();
    if (replies[ldt] > 0) {
      return fail(Kind::unsupported, "pid {} has a local descriptor table (modify_ldt(2)), which cannot be carried",
                  task.pid);
    }
    auto& out = *tc.mutable_rlimits();
    out.clear_rlimits();
    for (const tracee::Data& room : limits) {
      const auto limit = replies.object<Limit>(room);
      pb::RlimitEntry& entry = *out.add_rlimits();
      entry.set_cur(limit.soft);
      entry.set_max(limit.hard);
    }
    if (replies[merge] > 0) {
      tc.set_ferry_memory_merge(static_cast<std::uint32_t>(replies[merge]));
    }
    if (replies[thp] > 1) {
      tc.set_ferry_thp_disable(static_cast<std::uint32_t>(replies[thp]));
    }
    task.mm->set_thp_disabled(replies[thp] != 0);
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

Result<void> collect(DumpTask& task, DumpContext&) {
  auto& tc = *task.core->mutable_tc();
  FERRY_TRY(const std::int32_t oom, oom_score(task.pid));
  tc.set_oom_score_adj(oom);
  FERRY_TRY(const auto login, login_id(task.pid));
  if (login) {
    tc.set_loginuid(*login);
  }
  // Missing without CONFIG_COREDUMP, and the other without CONFIG_SCHED_AUTOGROUP.
  if (const auto filter = sys::read_file_at(task.proc.get(), "coredump_filter"); filter.has_value()) {
    const auto value = sys::parse_number(std::string_view(*filter).substr(0, filter->find('\n')), 16);
    if (!value || *value > 0xffffffff) {
      return fail(Kind::corrupt, "/proc/{}/coredump_filter holds \"{}\"", task.pid, *filter);
    }
    tc.set_ferry_coredump_filter(static_cast<std::uint32_t>(*value));
  }
  if (task.ns_sid == task.ns_pid) {
    if (const auto group = sys::read_file_at(task.proc.get(), "autogroup"); group.has_value()) {
      FERRY_TRY(const int nice, parse_autogroup(*group));
      if (nice != 0) {
        tc.set_ferry_autogroup_nice(nice);
      }
    }
  }
  return {};
}

Result<int> parse_autogroup(std::string_view text) {
  const std::size_t at = text.find(" nice ");
  std::string_view number = at == std::string_view::npos ? "" : text.substr(at + 6);
  number = number.substr(0, number.find('\n'));
  const bool minus = number.starts_with('-');
  const auto value = sys::parse_number(minus ? number.substr(1) : number);
  if (!text.empty() && (!value || *value > 20)) {  // empty: the task is in none
    return fail(Kind::corrupt, "/proc/PID/autogroup holds \"{}\"", text);
  }
  const int nice = static_cast<int>(value.value_or(0));
  return minus ? -nice : nice;
}

Result<void> restore(RestoreTask& task, RestoreContext&, tracee::Batch& batch) {
  const auto& tc = task.core->tc();
  FERRY_CHECK(restore_limits(task));
  FERRY_CHECK(restore_oom_score(task));
  FERRY_CHECK(restore_login(task, batch));
  if (tc.child_subreaper()) {
    batch.must("prctl(PR_SET_CHILD_SUBREAPER)", SYS_prctl, {PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0});
  }
  FERRY_CHECK(restore_core_filter(task));
  FERRY_CHECK(restore_autogroup(task));
  if (task.mm->thp_disabled()) {
    // What PR_GET_THP_DISABLE says beside its lowest bit are the flags to set it with (since Linux 6.18).
    batch.must("prctl(PR_SET_THP_DISABLE)", SYS_prctl, {PR_SET_THP_DISABLE, 1, tc.ferry_thp_disable() & ~1U, 0, 0});
  }
  if (tc.ferry_memory_merge() != 0) {
    batch.must("prctl(PR_SET_MEMORY_MERGE)", SYS_prctl, {kSetMemoryMerge, 1, 0, 0, 0});
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

}  // namespace ferry::state::limits

// A container that runs slower for a while, so that its memory can be sent faster than it writes: by the
// processor quota of its cgroup (Documentation/scheduler/sched-bwc.rst, Documentation/admin-guide/cgroup-v2.rst).
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/ids.h"

namespace ferry::migrate {

// What a quota says; no limit is a quota below 0.
struct CpuQuota {
  std::int64_t quota_us = -1;
  std::int64_t period_us = 100'000;
  bool operator==(const CpuQuota&) const = default;
};
// The quota that leaves `share` of `processors` (as many as are used without it), and no more than `now` does.
CpuQuota slower(const CpuQuota& now, double processors, double share);

class Throttle {
 public:
  static Result<Throttle> of(HostPid root);
  // `directory`: of the cgroup that has the quota; `usage`: the file that says how much it has used, cpuacct.usage
  // of v1 or cpu.stat of v2.
  static Result<Throttle> at(std::string directory, std::string usage);
  Throttle(Throttle&& other) noexcept;
  Throttle& operator=(Throttle&&) = delete;
  // Lifts it, if it was forgotten.
  ~Throttle();

  // What somebody else needs to know to lift it for us; to be told before the first slow_to().
  [[nodiscard]] std::string undo() const;
  // Lifts what another process has laid on; `undo` is what it told.
  static Result<void> carry_out(std::string_view undo);

  // From now on; measured against what the container has used since of(), while it was not slowed down.
  Result<void> slow_to(double share);
  // As it was.  Somebody else's change since then stays.
  Result<void> lift();

 private:
  Throttle(std::string directory, std::string usage) : directory_(std::move(directory)), usage_(std::move(usage)) {}
  Result<double> processors();

  std::string directory_;
  std::string usage_;
  CpuQuota own_;                     // the user's
  std::optional<CpuQuota> laid_on_;  // ours
  std::chrono::steady_clock::time_point since_;
  std::uint64_t used_us_ = 0;  // by then
  double processors_ = 0;      // on average, until it was slowed down
};

}  // namespace ferry::migrate

#include "migrate/throttle.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <sstream>
#include <vector>

#include "base/log.h"
#include "container/bundle.h"
#include "sys/file.h"

namespace ferry::migrate {
namespace {

using Clock = std::chrono::steady_clock;

// Short, so that the container is slow evenly and not stopped for most of a tenth of a second.
constexpr std::int64_t kPeriodUs = 20'000;
// The kernel's limits of both files.
constexpr std::int64_t kLeastUs = 1000;
constexpr std::int64_t kLongestUs = 1'000'000;
// Who has used less did not write much either; a quota has to leave it something.
constexpr double kLeastProcessors = 0.05;

bool is_v1(const std::string& directory) { return ::access((directory + "/cpu.cfs_quota_us").c_str(), F_OK) == 0; }

Result<std::int64_t> number_in(const std::string& path) {
  FERRY_TRY(const std::string text, sys::read_file(path));
  std::int64_t out = 0;
  if (std::from_chars(text.data(), text.data() + text.size(), out).ec != std::errc{}) {
    return fail(Kind::corrupt, "{} holds no number", path);
  }
  return out;
}

Result<CpuQuota> read_quota(const std::string& directory) {
  CpuQuota out;
  if (is_v1(directory)) {
    FERRY_TRY(out.quota_us, number_in(directory + "/cpu.cfs_quota_us"));
    FERRY_TRY(out.period_us, number_in(directory + "/cpu.cfs_period_us"));
    return out;
  }
  FERRY_TRY(const std::string text, sys::read_file(directory + "/cpu.max"));
  std::istringstream words(text);
  std::string quota;
  words >> quota >> out.period_us;
  if (quota != "max" && std::from_chars(quota.data(), quota.data() + quota.size(), out.quota_us).ec != std::errc{}) {
    return fail(Kind::corrupt, "{}/cpu.max holds no quota: {}", directory, text);
  }
  return out;
}

Result<void> write_quota(const std::string& directory, const CpuQuota& wanted) {
  if (!is_v1(directory)) {
    const std::string quota = wanted.quota_us < 0 ? "max" : std::to_string(wanted.quota_us);
    return sys::write_file(directory + "/cpu.max", fmt::format("{} {}\n", quota, wanted.period_us));
  }
  FERRY_TRY(const CpuQuota now, read_quota(directory));
  const auto write = [&](const char* file, std::int64_t value) {
    return sys::write_file(fmt::format("{}/{}", directory, file), std::to_string(value) + "\n");
  };
  // Two files, and after each of them the limit must not exceed that of the group above.  A longer period alone
  // only lowers it, a shorter one after a smaller quota does not exceed what is wanted.
  if (wanted.period_us >= now.period_us) {
    FERRY_CHECK(write("cpu.cfs_period_us", wanted.period_us));
    return write("cpu.cfs_quota_us", wanted.quota_us);
  }
  FERRY_CHECK(write("cpu.cfs_quota_us", wanted.quota_us));
  return write("cpu.cfs_period_us", wanted.period_us);
}

// Processor time of the whole group, in microseconds.
Result<std::uint64_t> used(const std::string& usage) {
  FERRY_TRY(const std::string text, sys::read_file(usage));
  if (!usage.ends_with("cpu.stat")) {
    return std::strtoull(text.c_str(), nullptr, 10) / 1000;  // one number, in nanoseconds
  }
  std::istringstream lines(text);
  std::string key;
  std::uint64_t value = 0;
  while (lines >> key >> value) {
    if (key == "usage_usec") {
      return value;
    }
  }
  return fail(Kind::unsupported, "{} does not say how much processor time was used", usage);
}

// A file of a group, in the hierarchy that has it.  Empty if there is none.
std::string file_of(const std::vector<container::MountPoint>& mounts, const char* type, const std::string& group,
                    const char* file) {
  for (const container::MountPoint& mount : mounts) {
    const std::string path = mount.path + group + "/" + file;
    // The root group has no quota, and is not the container's.
    if (mount.type == type && group.size() > 1 && ::access(path.c_str(), F_OK) == 0) {
      return path;
    }
  }
  return {};
}

}  // namespace

CpuQuota slower(const CpuQuota& now, double processors, double share) {
  double limit = std::max(processors, kLeastProcessors) * share;
  if (now.quota_us >= 0) {
    limit = std::min(limit, share * static_cast<double>(now.quota_us) / static_cast<double>(now.period_us));
  }
  const double period = std::clamp(static_cast<double>(kLeastUs) / limit, static_cast<double>(kPeriodUs),
                                   static_cast<double>(kLongestUs));
  return {.quota_us = std::max(kLeastUs, static_cast<std::int64_t>(limit * period)),
          .period_us = static_cast<std::int64_t>(period)};
}

Result<Throttle> Throttle::of(HostPid root) {
  FERRY_TRY(const std::string membership, sys::read_file(fmt::format("/proc/{}/cgroup", root)));
  FERRY_TRY(const std::string mounts, sys::read_file("/proc/self/mountinfo"));
  const auto mounted = container::parse_mountinfo(mounts);
  struct Files {
    std::string quota, usage;
  };
  const std::string v2 = container::cgroup_path(membership, "");
  const Files candidates[] = {
      {file_of(mounted, "cgroup", container::cgroup_path(membership, "cpu"), "cpu.cfs_quota_us"),
       file_of(mounted, "cgroup", container::cgroup_path(membership, "cpuacct"), "cpuacct.usage")},
      {file_of(mounted, "cgroup2", v2, "cpu.max"), file_of(mounted, "cgroup2", v2, "cpu.stat")}};
  for (const Files& files : candidates) {
    if (!files.quota.empty() && !files.usage.empty()) {
      return at(files.quota.substr(0, files.quota.rfind('/')), files.usage);
    }
  }
  return fail(Kind::unsupported, "the container has no cgroup with a processor quota");
}

Result<Throttle> Throttle::at(std::string directory, std::string usage) {
  Throttle out(std::move(directory), std::move(usage));
  FERRY_TRY(out.own_, read_quota(out.directory_));
  FERRY_TRY(out.used_us_, used(out.usage_));
  out.since_ = Clock::now();
  return out;
}

Throttle::Throttle(Throttle&& other) noexcept
    : directory_(std::move(other.directory_)),
      usage_(std::move(other.usage_)),
      own_(other.own_),
      laid_on_(std::exchange(other.laid_on_, std::nullopt)),
      since_(other.since_),
      used_us_(other.used_us_),
      processors_(other.processors_) {}

Throttle::~Throttle() {
  if (auto lifted = lift(); !lifted && lifted.error().kind != Kind::gone) {
    log::warning("the container may still be slowed down: {}", lifted.error().message());
  }
}

Result<double> Throttle::processors() {
  if (processors_ == 0) {
    FERRY_TRY(const std::uint64_t now, used(usage_));
    const double us = std::chrono::duration<double, std::micro>(Clock::now() - since_).count();
    processors_ = std::max(static_cast<double>(now - used_us_) / std::max(us, 1.0), kLeastProcessors);
  }
  return processors_;
}

Result<void> Throttle::slow_to(double share) {
  FERRY_TRY(const double all, processors());
  const CpuQuota wanted = slower(own_, all, share);
  laid_on_ = wanted;  // also if only the first of two files is written
  return write_quota(directory_, wanted).during("slowing the container down");
}

Result<void> Throttle::lift() {
  if (!laid_on_.has_value()) {
    return {};
  }
  const CpuQuota ours = *std::exchange(laid_on_, std::nullopt);
  FERRY_TRY(const CpuQuota now, read_quota(directory_));
  if (now.quota_us != ours.quota_us && now.period_us != ours.period_us) {
    return {};  // docker update, meanwhile
  }
  return write_quota(directory_, own_).during("giving the container its processor time back");
}

std::string Throttle::undo() const { return fmt::format("{} {} {}", own_.quota_us, own_.period_us, directory_); }

Result<void> Throttle::carry_out(std::string_view undo) {
  std::istringstream words{std::string(undo)};
  CpuQuota own;
  std::string directory;
  words >> own.quota_us >> own.period_us >> std::ws;
  std::getline(words, directory);
  if (!words || directory.empty()) {
    return fail(Kind::corrupt, "no quota to give back: {}", undo);
  }
  return write_quota(directory, own);
}

}  // namespace ferry::migrate

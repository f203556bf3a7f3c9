#include "state/timerfd/timerfd.h"

#include <sys/ioctl.h>
#include <sys/timerfd.h>

#include <charconv>

namespace ferry::state {
namespace {

// <linux/timerfd.h>, which contradicts <sys/timerfd.h>.
constexpr unsigned long kSetTicks = _IOW('T', 0, std::uint64_t);
constexpr long kNanoseconds = 1'000'000'000;

// "(1, 500000000)": seconds and nanoseconds.
std::optional<timespec> parse_pair(std::string_view text) {
  if (!text.starts_with('(') || !text.ends_with(')')) {
    return std::nullopt;
  }
  text = text.substr(1, text.size() - 2);
  const auto comma = text.find(", ");
  if (comma == std::string_view::npos) {
    return std::nullopt;
  }
  const auto sec = sys::parse_number(text.substr(0, comma));
  const auto nsec = sys::parse_number(text.substr(comma + 2));
  if (!sec || !nsec || *nsec >= static_cast<std::uint64_t>(kNanoseconds) || *sec > 0x7fffffffffffffff) {
    return std::nullopt;
  }
  return timespec{static_cast<time_t>(*sec), static_cast<long>(*nsec)};
}

timespec sum(timespec a, timespec b) {
  timespec out{a.tv_sec + b.tv_sec, a.tv_nsec + b.tv_nsec};
  if (out.tv_nsec >= kNanoseconds) {
    out.tv_nsec -= kNanoseconds;
    ++out.tv_sec;
  }
  return out;
}

// The alarm clocks show the time of those that do not wake the machine, which need no hardware to be read
// (timerfd_create(2), clock_gettime(2)).
clockid_t read_by(clockid_t clock) {
  if (clock == CLOCK_REALTIME_ALARM) {
    return CLOCK_REALTIME;
  }
  return clock == CLOCK_BOOTTIME_ALARM ? CLOCK_BOOTTIME : clock;
}

class TimerfdKind : public FileKind {
 public:
  [[nodiscard]] std::string_view name() const override { return "timerfd"; }
  [[nodiscard]] pb::FdType type() const override { return pb::FD_TIMERFD; }
  [[nodiscard]] bool matches(const FdProbe& probe) const override { return probe.link == "anon_inode:[timerfd]"; }

  Result<void> collect(const FdProbe& probe, DumpContext& context, pb::FileEntry& out) override {
    pb::TimerfdEntry& entry = *out.mutable_tfd();
    FERRY_TRY(const TimerfdInfo info, parse_timerfd(probe.info).during("{}", probe.subject()));
    entry.set_id(out.id());
    entry.set_flags(probe.status_flags());
    entry.set_clockid(static_cast<std::uint32_t>(info.clock));
    entry.set_ticks(info.ticks);
    entry.set_settime_flags(info.settime_flags);
    entry.set_vsec(static_cast<std::uint64_t>(info.value.tv_sec));
    entry.set_vnsec(static_cast<std::uint64_t>(info.value.tv_nsec));
    entry.set_isec(static_cast<std::uint64_t>(info.interval.tv_sec));
    entry.set_insec(static_cast<std::uint64_t>(info.interval.tv_nsec));
    return collect_fown(probe, context, *entry.mutable_fown());
  }

  Result<UniqueFd> open(const pb::FileEntry& file, RestoreContext&) override {
    const pb::TimerfdEntry& entry = file.tfd();
    UniqueFd fd(::timerfd_create(static_cast<int>(entry.clockid()), TFD_CLOEXEC));
    if (!fd) {
      return sys_fail(fmt::format("timerfd_create(clock {})", entry.clockid()));
    }
    FERRY_CHECK(restore_status_flags(fd.get(), entry.flags()));
    return fd;
  }

  // Armed as late as possible, so that little of what remains passes before the program runs.
  Result<void> connect(const pb::FileEntry& file, int fd, RestoreContext& context) override {
    const pb::TimerfdEntry& entry = file.tfd();
    itimerspec its{};
    its.it_value = {static_cast<time_t>(entry.vsec()), static_cast<long>(entry.vnsec())};
    its.it_interval = {static_cast<time_t>(entry.isec()), static_cast<long>(entry.insec())};
    if (its.it_value.tv_sec != 0 || its.it_value.tv_nsec != 0) {
      // What the image has is the time that remained; an absolute timer stays one (TFD_TIMER_CANCEL_ON_SET
      // depends on it), by this process's clock, which is the one that our call is taken by.
      if ((entry.settime_flags() & TFD_TIMER_ABSTIME) != 0) {
        timespec now{};
        if (::clock_gettime(read_by(static_cast<clockid_t>(entry.clockid())), &now) != 0) {
          return sys_fail(fmt::format("clock_gettime({})", entry.clockid()));
        }
        its.it_value = sum(its.it_value, now);
      }
      if (::timerfd_settime(fd, static_cast<int>(entry.settime_flags()), &its, nullptr) != 0) {
        return sys_fail(fmt::format("timerfd_settime(timerfd {})", entry.id()));
      }
    }
    if (entry.ticks() != 0) {  // after arming, which clears them
      const std::uint64_t ticks = entry.ticks();
      if (::ioctl(fd, kSetTicks, &ticks) != 0) {
        return sys_fail(fmt::format("ioctl(timerfd {}, TFD_IOC_SET_TICKS)", entry.id()));
      }
    }
    return restore_fown(fd, entry.fown(), context);
  }
};

}  // namespace

// Documentation/filesystems/proc.rst, "Timerfd files": the flags are octal.
Result<TimerfdInfo> parse_timerfd(const sys::FdInfo& info) {
  const auto number = [&](std::string_view key, int base) -> std::optional<std::uint64_t> {
    const auto text = info.get(key);
    return text ? sys::parse_number(*text, base) : std::nullopt;
  };
  const auto pair = [&](std::string_view key) -> std::optional<timespec> {
    const auto text = info.get(key);
    return text ? parse_pair(*text) : std::nullopt;
  };
  const auto clock = number("clockid", 10);
  const auto ticks = number("ticks", 10);
  const auto flags = number("settime flags", 8);
  const auto value = pair("it_value");
  const auto interval = pair("it_interval");
  if (!clock || !ticks || !flags || !value || !interval) {
    return fail(Kind::corrupt, "fdinfo of a timerfd lacks clockid, ticks, settime flags, it_value or it_interval");
  }
  return TimerfdInfo{static_cast<int>(*clock), *ticks, static_cast<std::uint32_t>(*flags), *value, *interval};
}

std::unique_ptr<FileKind> make_timerfd_kind() { return std::make_unique<TimerfdKind>(); }

}  // namespace ferry::state

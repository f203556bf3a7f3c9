#include "engine/tracker_keeper.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>

#include "base/log.h"
#include "sys/file.h"
#include "sys/proc.h"
#include "tracee/deadline.h"

namespace ferry::engine {
namespace {

using state::memory::Tracker;

constexpr const char* kName = "ferry-tracker";  // of the process and of its memory file
constexpr std::string_view kTableLink = "/memfd:ferry-tracker (deleted)";
constexpr std::chrono::hours kLongest{24};
constexpr int kStopMs = 5000;

Result<UniqueFd> open_pidfd(HostPid pid) {
  UniqueFd fd{static_cast<int>(::syscall(SYS_pidfd_open, pid.value, 0))};
  if (!fd) {
    return sys_fail(fmt::format("pidfd_open({})", pid));
  }
  return fd;
}

Result<UniqueFd> fetch(const UniqueFd& pidfd, int fd) {
  UniqueFd out{static_cast<int>(::syscall(SYS_pidfd_getfd, pidfd.get(), fd, 0))};
  if (!out) {
    return sys_fail(fmt::format("pidfd_getfd({})", fd));
  }
  return out;
}

// Leaves nothing open but what is named, which is sorted.
void close_others(const std::vector<int>& keep) {
  unsigned from = 0;
  for (const int fd : keep) {
    if (static_cast<unsigned>(fd) > from) {
      ::syscall(SYS_close_range, from, static_cast<unsigned>(fd) - 1, 0);
    }
    from = static_cast<unsigned>(fd) + 1;
  }
  ::syscall(SYS_close_range, from, ~0U, 0);
}

// The life of a keeper: until every process has ended.
[[noreturn]] void hold(std::vector<pollfd> processes) {
  const auto end = std::chrono::steady_clock::now() + kLongest;
  while (!processes.empty()) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - std::chrono::steady_clock::now());
    if (left.count() <= 0 ||
        (::poll(processes.data(), processes.size(), static_cast<int>(left.count())) < 0 && errno != EINTR)) {
      break;
    }
    std::erase_if(processes, [](const pollfd& p) { return p.revents != 0; });
  }
  ::_exit(0);
}

}  // namespace

std::string tracker_table(const std::string& set, const std::vector<const Tracker*>& trackers) {
  std::string out = fmt::format("set {}\n", set);
  for (const Tracker* tracker : trackers) {
    out += fmt::format("process {} {} {}\n", tracker->pid(), tracker->start_time(), tracker->uffd());
    for (const sys::PageRange& r : tracker->distrusted()) {
      out += fmt::format("distrust {} {}\n", r.start, r.end);
    }
  }
  return out;
}

Result<void> TrackerKeeper::start(const std::string& set, const std::vector<const Tracker*>& trackers) {
  std::vector<UniqueFd> pidfds;
  std::vector<pollfd> processes;
  std::vector<int> keep;
  for (const Tracker* tracker : trackers) {
    auto pidfd = open_pidfd(tracker->pid());
    if (pidfd.has_value()) {
      processes.push_back({pidfd->get(), POLLIN, 0});
      keep.push_back(pidfd->get());
      keep.push_back(tracker->uffd());
      pidfds.push_back(std::move(*pidfd));
    }
  }
  const UniqueFd table{::memfd_create(kName, MFD_CLOEXEC)};
  if (!table) {
    return sys_fail("memfd_create()");
  }
  const std::string text = tracker_table(set, trackers);
  FERRY_CHECK(sys::write_all(table.get(), text.data(), text.size(), "the table of a tracker"));
  keep.push_back(table.get());
  std::sort(keep.begin(), keep.end());

  // Forked twice, so that it is nobody's child who might wait for it.
  const pid_t child = ::fork();
  if (child < 0) {
    return sys_fail("fork()");
  }
  if (child == 0) {
    ::setsid();
    (void)::chdir("/");
    // Here and not in the keeper, which inherits it all: whoever looks once we return has to find it.
    ::prctl(PR_SET_NAME, kName);
    close_others(keep);
    const pid_t keeper = ::fork();
    if (keeper == 0) {
      hold(std::move(processes));
    }
    ::_exit(keeper < 0 ? errno : 0);
  }
  int status = 0;
  while (::waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) {
      return sys_fail(fmt::format("waitpid({})", child));
    }
  }
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    return sys_fail(WIFEXITED(status) ? WEXITSTATUS(status) : EINTR, "fork() of a tracker");
  }
  return {};
}

Result<std::vector<TrackerKeeper>> TrackerKeeper::find(const std::vector<HostPid>& pids) {
  std::vector<TrackerKeeper> out;
  FERRY_TRY(const auto all, sys::numeric_entries(AT_FDCWD, "/proc"));
  for (const int number : all) {
    const auto comm = sys::read_file(fmt::format("/proc/{}/comm", number));
    if (!comm.has_value() || *comm != std::string(kName) + "\n") {
      continue;
    }
    auto keeper = look_at(HostPid(number));
    if (!keeper.has_value()) {
      log::debug("pid {} is called {} and is none: {}", number, kName, keeper.error().message());
      continue;
    }
    const bool concerns_us = std::any_of(keeper->held_.begin(), keeper->held_.end(), [&](const Held& held) {
      return std::find(pids.begin(), pids.end(), held.pid) != pids.end();
    });
    if (concerns_us || keeper->held_.empty()) {
      out.push_back(std::move(*keeper));
    }
  }
  return out;
}

Result<TrackerKeeper> TrackerKeeper::look_at(HostPid pid) {
  TrackerKeeper out;
  out.pid_ = pid;
  FERRY_TRY(out.pidfd_, open_pidfd(pid));
  FERRY_TRY(const auto proc, sys::open_proc(pid));
  FERRY_TRY(const auto status_text, sys::read_file_at(proc.get(), "status"));
  FERRY_TRY(const auto status, sys::parse_status(status_text));
  if (std::any_of(status.uid.begin(), status.uid.end(), [](std::uint32_t uid) { return uid != 0; })) {
    return fail(Kind::denied, "pid {} belongs to somebody else", pid);
  }
  FERRY_TRY(const auto numbers, sys::numeric_entries(proc.get(), "fd"));
  for (const int fd : numbers) {
    const auto link = sys::read_link_at(proc.get(), fmt::format("fd/{}", fd));
    if (link.has_value() && *link == kTableLink) {
      FERRY_TRY(out.table_, fetch(out.pidfd_, fd));
      FERRY_TRY(const UniqueFd own, sys::open(fmt::format("/proc/self/fd/{}", out.table_.get()), O_RDONLY));
      FERRY_TRY(const auto text, sys::read_all(own.get(), "the table of a tracker"));
      FERRY_CHECK(out.parse(text));
      return out;
    }
  }
  return fail(Kind::corrupt, "pid {} has no table", pid);
}

Result<void> TrackerKeeper::parse(std::string_view table) {
  while (!table.empty()) {
    const std::size_t end = std::min(table.find('\n'), table.size());
    std::string_view line = table.substr(0, end);
    table.remove_prefix(std::min(end + 1, table.size()));
    std::vector<std::string_view> words;
    while (!line.empty()) {
      const std::size_t blank = std::min(line.find(' '), line.size());
      words.push_back(line.substr(0, blank));
      line.remove_prefix(std::min(blank + 1, line.size()));
    }
    std::vector<std::uint64_t> numbers;
    for (std::size_t i = 1; i < words.size() && words[0] != "set"; ++i) {
      numbers.push_back(sys::parse_number(words[i]).value_or(0));
    }
    if (words.size() == 2 && words[0] == "set") {
      set_ = words[1];
    } else if (numbers.size() == 3 && words[0] == "process") {
      held_.push_back({HostPid(static_cast<pid_t>(numbers[0])), numbers[1], static_cast<int>(numbers[2]), {}});
    } else if (numbers.size() == 2 && words[0] == "distrust" && !held_.empty()) {
      held_.back().distrusted.push_back({numbers[0], numbers[1]});
    } else {
      return fail(Kind::corrupt, "the table of tracker {} has a line that is none", pid_);
    }
  }
  return {};
}

Result<std::vector<Tracker>> TrackerKeeper::take() const {
  std::vector<Tracker> out;
  for (const Held& held : held_) {
    FERRY_TRY(auto uffd, fetch(pidfd_, held.uffd));
    auto tracker = Tracker::adopt(held.pid, held.start_time, std::move(uffd));
    if (tracker.has_value()) {
      tracker->distrust(held.distrusted);
      out.push_back(std::move(*tracker));
    } else if (tracker.error().kind != Kind::gone) {
      return tl::unexpected<Error>(std::move(tracker).error());
    }
  }
  return out;
}

Result<void> TrackerKeeper::void_marks() const {
  if (::ftruncate(table_.get(), 0) != 0) {
    return sys_fail("ftruncate(the table of a tracker)");
  }
  return {};
}

Result<void> TrackerKeeper::stop() const {
  if (::syscall(SYS_pidfd_send_signal, pidfd_.get(), SIGKILL, nullptr, 0) != 0 && errno != ESRCH) {
    return sys_fail(fmt::format("pidfd_send_signal({})", pid_));
  }
  pollfd ended{pidfd_.get(), POLLIN, 0};
  int n = 0;
  do {
    n = ::poll(&ended, 1, kStopMs);
  } while (n < 0 && errno == EINTR);
  return n == 1 ? Result<void>() : Result<void>(sys_fail(ETIMEDOUT, fmt::format("tracker {} does not end", pid_)));
}

}  // namespace ferry::engine

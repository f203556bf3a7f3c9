#include "state/memory/tracker.h"

#include <fcntl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <future>
#include <thread>

#include "base/log.h"
#include "state/interrupted/interrupted.h"
#include "state/memory/device_writes.h"
#include "state/memory/memory.h"
#include "state/memory/pages.h"
#include "sys/file.h"
#include "sys/memory.h"
#include "sys/userfaultfd.h"
#include "tracee/stop_tree.h"

namespace ferry::state::memory {
namespace {

constexpr std::chrono::seconds kStopTime{5};
constexpr std::uint64_t kPartSize = 64U << 20;  // bytes whose scan takes longer than to start a thread
constexpr std::uint64_t kMostParts = 4;

// The mappings in a few parts of the same size, for a thread each; one that is large goes into several.
std::vector<std::vector<sys::Mapping>> divide(const std::vector<sys::Mapping>& mappings) {
  std::uint64_t total = 0;
  for (const sys::Mapping& m : mappings) {
    total += kept(m) == Kept::own_pages ? m.end - m.start : 0;
  }
  // One processor is left to whoever saves the rest of the tree meanwhile.
  const std::uint64_t processors = std::max(std::thread::hardware_concurrency(), 2U) - 1;
  const std::uint64_t parts = std::min<std::uint64_t>({total / kPartSize, kMostParts, processors});
  if (parts < 2) {
    return {};
  }
  // Whole huge pages stay together.
  constexpr std::uint64_t kHuge = 2U << 20;
  const std::uint64_t size = (total / parts + kHuge - 1) / kHuge * kHuge;
  std::vector<std::vector<sys::Mapping>> out(1);
  std::uint64_t filled = 0;
  for (sys::Mapping rest : mappings) {
    const std::uint64_t end = rest.end;
    while (kept(rest) == Kept::own_pages && filled + (end - rest.start) > size && out.size() < parts) {
      sys::Mapping piece = rest;
      piece.end = std::min(end, (rest.start + size - filled) / kHuge * kHuge);
      if (piece.end > piece.start) {
        out.back().push_back(piece);
        rest.start = piece.end;
      }
      out.emplace_back();
      filled = 0;
    }
    filled += kept(rest) == Kept::own_pages ? end - rest.start : 0;
    if (rest.start < end) {
      out.back().push_back(std::move(rest));
    }
  }
  return out;
}

Result<UniqueFd> fetch(HostPid pid, int fd) {
  const UniqueFd pidfd{static_cast<int>(::syscall(SYS_pidfd_open, pid.value, 0))};
  if (!pidfd) {
    return sys_fail(fmt::format("pidfd_open({})", pid));
  }
  UniqueFd out{static_cast<int>(::syscall(SYS_pidfd_getfd, pidfd.get(), fd, 0))};
  if (!out) {
    return sys_fail(fmt::format("pidfd_getfd({}, {})", pid, fd));
  }
  return out;
}

// Makes a userfaultfd in the stopped process and takes it out.  All its threads are stopped: another one
// could fork(2) while the descriptor is in the table.
Result<UniqueFd> make_inside(tracee::Process& process, const std::vector<sys::Mapping>& mappings) {
  const auto kernel = find_kernel_mappings(mappings);
  FERRY_TRY(const std::uint64_t at, process.find_syscall(kernel.vdso.start, kernel.vdso.size));
  constexpr std::uint64_t kFlags = O_CLOEXEC | O_NONBLOCK;
  FERRY_TRY(std::int64_t fd, process.call(process.leader(), SYS_userfaultfd, {kFlags}, at));
  if (fd == -EPERM) {
    // Without CAP_SYS_PTRACE in there; nobody has to answer faults in kernel mode, so this does as well.
    FERRY_TRY(fd, process.call(process.leader(), SYS_userfaultfd, {kFlags | sys::kUffdUserModeOnly}, at));
  }
  if (fd < 0) {
    return sys_fail(static_cast<int>(-fd), fmt::format("userfaultfd() in pid {}", process.pid()));
  }
  auto fetched = fetch(process.pid(), static_cast<int>(fd));
  FERRY_TRY(const std::int64_t closed, process.call(process.leader(), SYS_close, {static_cast<std::uint64_t>(fd)}, at));
  if (closed != 0) {
    return sys_fail(static_cast<int>(-closed), fmt::format("close({}) in pid {}", fd, process.pid()));
  }
  return fetched;
}

}  // namespace

Result<Tracker> Tracker::install(HostPid pid) {
  tracee::WaysBack ways;
  ways.learn(pid);
  return install(pid, ways);
}

Result<Tracker> Tracker::install(HostPid pid, const tracee::WaysBack& ways) {
  FERRY_TRY(auto task, tracee::stop_process(pid, tracee::Deadline(kStopTime)));
  if (task.zombie) {
    return fail(Kind::gone, "pid {} has ended", pid);
  }
  const std::uint64_t start_time = task.start_time;
  FERRY_TRY(auto process, tracee::Process::of(pid, std::move(task.threads)));
  for (auto& thread : process.threads()) {
    // While it is traced, a filter would judge our call as one of its own (ptrace(2)).
    auto suspended = thread.set_options(PTRACE_O_TRACESYSGOOD | PTRACE_O_SUSPEND_SECCOMP);
    if (!suspended.has_value() && suspended.error().kind == Kind::gone) {
      return tl::unexpected<Error>(std::move(suspended).error());
    }
    FERRY_CHECK(interrupted::undo_eintr(thread));
  }
  FERRY_TRY(const auto text, sys::read_file(fmt::format("/proc/{}/maps", pid)));
  FERRY_TRY(const auto mappings, sys::parse_maps(text));
  process.set_way_back(ways.of(pid, mappings));
  auto tracker = install(process, start_time, mappings);
  for (auto& thread : process.threads()) {
    FERRY_CHECK(thread.detach());
  }
  return tracker;
}

Result<Tracker> Tracker::install(tracee::Process& stopped, std::uint64_t start_time,
                                 const std::vector<sys::Mapping>& mappings) {
  FERRY_TRY(auto uffd, make_inside(stopped, mappings));
  FERRY_CHECK(sys::uffd_negotiate(uffd.get()));
  return adopt(stopped.pid(), start_time, std::move(uffd));
}

void Tracker::distrust(const std::vector<sys::PageRange>& pages) {
  doubtful_.insert(doubtful_.end(), pages.begin(), pages.end());
  tidy(doubtful_);
}

Result<Tracker> Tracker::adopt(HostPid pid, std::uint64_t start_time, UniqueFd uffd) {
  Tracker out;
  out.pid_ = pid;
  out.start_time_ = start_time;
  out.uffd_ = std::move(uffd);
  FERRY_TRY(out.proc_, sys::open_proc(pid));
  FERRY_TRY(const auto text, sys::read_file_at(out.proc_.get(), "stat"));
  FERRY_TRY(const auto stat, sys::parse_stat(text));
  if (stat.start_time != start_time) {
    return fail(Kind::gone, "pid {} is another process by now", pid);
  }
  return out;
}

Result<Scan> Tracker::scan(Then then) {
  FERRY_TRY(const auto text, sys::read_file_at(proc_.get(), "maps"));
  FERRY_TRY(const auto mappings, sys::parse_maps(text));
  return scan(then, mappings);
}

Result<Scan> Tracker::scan(Then then, const std::vector<sys::Mapping>& mappings) {
  Scan out;
  // Marking pages is the kernel's work for one thread at a time, and done while the process runs.
  const auto parts = then == Then::leave ? divide(mappings) : std::vector<std::vector<sys::Mapping>>();
  if (parts.size() < 2) {
    FERRY_CHECK(scan_all(mappings, then, out));
  } else {
    std::vector<Scan> scans(parts.size());
    std::vector<std::future<Result<void>>> others;
    for (std::size_t i = 1; i < parts.size(); ++i) {
      others.push_back(std::async(std::launch::async, [&, i] { return scan_all(parts[i], then, scans[i]); }));
    }
    auto done = scan_all(parts.front(), then, scans.front());
    for (auto& other : others) {
      auto theirs = other.get();
      done = done.has_value() ? std::move(theirs) : std::move(done);
    }
    FERRY_CHECK(std::move(done));
    for (const Scan& scan : scans) {
      out.written.insert(out.written.end(), scan.written.begin(), scan.written.end());
      out.unchanged.insert(out.unchanged.end(), scan.unchanged.begin(), scan.unchanged.end());
      out.guards.insert(out.guards.end(), scan.guards.begin(), scan.guards.end());
    }
  }
  tidy(out.written);
  tidy(out.unchanged);
  tidy(out.guards);
  if (!doubtful_.empty()) {
    const auto late = common(out.unchanged, doubtful_);
    out.unchanged = without(out.unchanged, late);
    out.written.insert(out.written.end(), late.begin(), late.end());
    tidy(out.written);
  }
  if (then == Then::protect) {
    // After the pages were marked and before they are read: a transfer that ends before this look is whole
    // when they are read, and one that ends later is found by it.
    FERRY_TRY(doubtful_, buffers_of_devices(pid_, proc_.get(), mappings));
  }
  return out;
}

Result<void> Tracker::scan_all(const std::vector<sys::Mapping>& mappings, Then then, Scan& out) {
  // Opened for every scan: an open pagemap stays with the address space of its time, also after execve(2).
  FERRY_TRY(const UniqueFd pagemap, sys::open_at(proc_.get(), "pagemap", O_RDONLY));
  for (const sys::Mapping& m : mappings) {
    switch (kept(m)) {
      case Kept::nothing:
        break;
      case Kept::everything:
        FERRY_CHECK(add_kept(Kept::everything, backing(m), pagemap.get(), m.start, m.end, out.written));
        break;
      case Kept::own_pages:
        FERRY_CHECK(scan_mapping(pagemap.get(), m, then, out));
        break;
    }
  }
  return {};
}

Result<void> Tracker::scan_mapping(int pagemap, const sys::Mapping& m, Then then, Scan& out) {
  const sys::Backing of = backing(m);
  const auto protect = then == Then::protect ? sys::Protect::yes : sys::Protect::no;
  const auto look = [&]() -> Result<void> {
    sys::WrittenPages pages;
    FERRY_CHECK(sys::scan_written(pagemap, m.start, m.end, of, protect, pages));
    out.written.insert(out.written.end(), pages.written.begin(), pages.written.end());
    out.unchanged.insert(out.unchanged.end(), pages.unchanged.begin(), pages.unchanged.end());
    out.guards.insert(out.guards.end(), pages.guards.begin(), pages.guards.end());
    return add_absent(pagemap, pages.absent, out);
  };
  auto done = look();
  if (done.has_value() || done.error().kind != Kind::unsupported) {
    return done;
  }
  if (then == Then::protect) {
    const auto watched = sys::uffd_watch(uffd_.get(), m.start, m.end);
    if (watched.has_value()) {
      // uffd_watch has taken off all marks, so this finds everything, also what the first look has marked.
      done = look();
      if (done.has_value() || done.error().kind != Kind::unsupported) {
        return done;
      }
      out.renewed = true;  // what was watched is at the same addresses of another address space
    } else if (watched.error().kind == Kind::gone) {
      out.renewed = true;
    } else {
      log::debug("pid {} mapping {:x}-{:x} counts as written: {}", pid_, m.start, m.end, watched.error().message());
    }
  }
  return sys::own_pages(pagemap, m.start, m.end, of, out.written, &out.guards);
}

Result<void> Tracker::add_absent(int pagemap, const std::vector<sys::PageRange>& absent, Scan& out) const {
  if (absent.empty()) {
    return {};
  }
  FERRY_TRY(const UniqueFd memory, sys::open_at(proc_.get(), "mem", O_RDONLY));
  for (const sys::PageRange& range : absent) {
    for (std::uint64_t at = range.start; at < range.end; at += image::kPageSize) {
      // Reading brings in what is there: the page from swap, or the file's.  Behind the end of the file is nothing.
      if (sys::read_object<std::uint8_t>(pid_, at, memory.get()).has_value()) {
        FERRY_CHECK(sys::own_pages(pagemap, at, at + image::kPageSize, sys::Backing::file, out.written));
      }
    }
  }
  return {};
}

}  // namespace ferry::state::memory

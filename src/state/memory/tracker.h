// Which pages of a running process are written, found out without the process noticing.
//
// A Tracker stands for one process.  Its userfaultfd is made inside the process by a remote call, taken out
// and closed there again; memory is watched from outside.  A store to a watched page costs its writer one
// fault, which the kernel settles by itself, once per page and scan.  The Tracker owns the descriptor: when
// it is dropped, or we die, the watch ends and nothing of it is left in the process.
//
// How to use it:
//   FERRY_TRY(auto tracker, Tracker::install(pid));          // the process stops for an instant
//   FERRY_TRY(auto scan, tracker.scan(Then::protect));       // running: scan.written is everything
//   ... read scan.written; only then, so that what is written while it is read is in the next scan ...
//   FERRY_TRY(scan, tracker.scan(Then::protect));            // running: what was written since
//   ... send scan.written, drop what is neither in written nor in unchanged ...
//   FERRY_TRY(scan, tracker.scan(Then::leave, mappings));    // stopped: the rest
// A scan that fails leaves the marks in disorder: install anew, or take everything as written.
//
// Counted as written as a whole are mappings that are not watched: new ones, moved ones, those of another
// userfaultfd; they are watched from the next scan on, if the kernel can.  So is memory into which a device
// may write unseen.  Shared memory is not in a scan: it is kept as a file, not as pages of a process.
// A child of fork(2) is a process of its own and not watched.  After execve(2) the scan says `renewed`.
//
// Needs Linux 6.7.  A process that makes a userfaultfd of its own while it is tracked cannot register
// watched memory with it (EBUSY).
#pragma once

#include <cstdint>
#include <vector>

#include "base/error.h"
#include "base/ids.h"
#include "base/unique_fd.h"
#include "sys/pagemap.h"
#include "sys/proc.h"
#include "tracee/process.h"

namespace ferry::state::memory {

// Sorted, not overlapping.  Together these are the private pages that belong to a checkpoint (pages.h), of
// watched and other mappings; the vDSO is always in written.
struct Scan {
  std::vector<sys::PageRange> written;    // since the last scan; all of them in the first one
  std::vector<sys::PageRange> unchanged;  // as the last scan left them
  std::vector<sys::PageRange> guards;     // nobody can read them (MADV_GUARD_INSTALL); in neither of the others
  // The process has another address space than the one that was watched: everything is in written, and
  // nothing can be watched until a Tracker is installed anew.
  bool renewed = false;
};

enum class Then : std::uint8_t {
  protect,  // what is written from now on is for the next scan
  leave,    // the last look: marks stay as they are, new mappings are not watched
};

class Tracker {
 public:
  // Stops all threads of the process, for about 0.3 ms and 0.1 ms for each of them.
  // Errors: gone; unsupported (this kernel); denied (somebody traces it); os (it does not stop, has no free
  // descriptor).
  // `ways`: has learned of the process, or of one like it.
  static Result<Tracker> install(HostPid pid, const tracee::WaysBack& ways);
  static Result<Tracker> install(HostPid pid);
  // The same in a process that is stopped already, with all its threads.
  static Result<Tracker> install(tracee::Process& stopped, std::uint64_t start_time,
                                 const std::vector<sys::Mapping>& mappings);
  // Around a descriptor that came from an earlier Tracker of the same process.  Errors: gone.
  static Result<Tracker> adopt(HostPid pid, std::uint64_t start_time, UniqueFd uffd);

  // Reads /proc/PID/maps.  Errors: gone; os.
  Result<Scan> scan(Then then);
  // With mappings that are known already, of a process that is stopped.
  Result<Scan> scan(Then then, const std::vector<sys::Mapping>& mappings);

  // These pages count as written in the next scan, whatever their marks say.
  void distrust(const std::vector<sys::PageRange>& pages);
  [[nodiscard]] const std::vector<sys::PageRange>& distrusted() const { return doubtful_; }

  [[nodiscard]] HostPid pid() const { return pid_; }
  [[nodiscard]] std::uint64_t start_time() const { return start_time_; }  // with the pid its identity
  [[nodiscard]] int uffd() const { return uffd_.get(); }

 private:
  Tracker() = default;
  Result<void> scan_all(const std::vector<sys::Mapping>& mappings, Then then, Scan& out);
  Result<void> scan_mapping(int pagemap, const sys::Mapping& mapping, Then then, Scan& out);
  // Of pages of a private file mapping that are not present: those that have content of their own.
  Result<void> add_absent(int pagemap, const std::vector<sys::PageRange>& absent, Scan& out) const;

  HostPid pid_;
  std::uint64_t start_time_ = 0;
  UniqueFd proc_;  // /proc/PID, O_PATH
  UniqueFd uffd_;
  std::vector<sys::PageRange> doubtful_;  // a device may have been writing there during the last scan
};

}  // namespace ferry::state::memory

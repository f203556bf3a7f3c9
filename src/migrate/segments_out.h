// Shared memory of the tree that is not on a mounted file system (memfd_create(2), MAP_SHARED | MAP_ANONYMOUS), on
// the source: sent while the tree runs, and in the pause what differs from what the destination has.
//
// What differs is found by sums, not by watching page tables: those of a process that was born and has died between
// two looks are gone with what it wrote, and write(2) is in none.  So a segment is read as a whole in the pause, but
// only what changed crosses, and nobody's write is lost.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/ids.h"
#include "base/unique_fd.h"
#include "image/page_sink.h"
#include "image/set.h"
#include "migrate/page_streams.h"

namespace ferry::migrate {

// What the destination has of a segment.  A sum is XXH3 of 128 bits: against chance, not against somebody who makes
// two pages of one sum, which would be the container itself, to its own harm.
class PageSums {
 public:
  // Whether this is other content than before; it is what the destination has from now on.
  bool differs(std::uint64_t page, std::span<const std::byte> content);
  // The same for a page of zeros, as all are in the beginning.
  bool differs_from_zeros(std::uint64_t page);
  // All pages from here on are zeros.
  [[nodiscard]] std::uint64_t end() const { return sums_.size(); }

 private:
  using Sum = std::pair<std::uint64_t, std::uint64_t>;
  std::vector<Sum> sums_;  // both numbers 0: zeros
};

// The content of one segment, in order: what the destination does not have of it is sent, the rest is not.
// Pages that are not described are zeros.
class SegmentPages : public image::PageSink {
 public:
  SegmentPages(PageStreams& streams, image::Name pagemap, PageSums& sums) : streams_(streams), sums_(sums) {
    batch_.begin(pagemap);
  }
  void describe(std::uint64_t offset, std::uint64_t page_count, std::uint32_t flags) override;
  Result<void> append(std::span<const std::byte> pages) override;
  Result<void> finish() override;

  [[nodiscard]] std::uint64_t sent_pages() const { return sent_; }
  [[nodiscard]] double sending_ms() const { return sending_ms_; }

 private:
  Result<void> zeros_up_to(std::uint64_t page);
  Result<void> put(std::uint64_t page, std::span<const std::byte> content);
  Result<void> send();

  PageStreams& streams_;
  PageSums& sums_;
  PageBatch batch_;
  struct Range {
    std::uint64_t page = 0, end = 0;
  };
  std::vector<Range> ranges_;  // present, in order
  std::size_t current_ = 0;
  std::uint64_t next_ = 0;  // all pages before this one were looked at
  std::uint64_t sent_ = 0;
  double sending_ms_ = 0;
};

class SegmentsOut {
 public:
  // Those that the set says the destination has made a file for: by their shmid.
  static std::set<std::uint32_t> to_settle(const image::Set& look);

  SegmentsOut() = default;
  // Looks for them in the processes of the tree.  One that is not there any more is passed over: what it becomes is
  // sent in the pause.
  static Result<SegmentsOut> find(HostPid root, const std::set<std::uint32_t>& wanted);

  struct Sent {
    std::uint64_t pages = 0;
    double looking_ms = 0;  // for finding what differs
  };
  // While the tree runs: a page that is written meanwhile is found by the next call, or in the pause.
  Result<Sent> send(PageStreams& streams);
  // For the last time: by who reads the segment.  nullptr if it is none of these.
  std::unique_ptr<image::PageSink> last(PageStreams& streams, image::Name pagemap);
  [[nodiscard]] bool empty() const { return segments_.empty(); }

 private:
  struct Segment {
    UniqueFd file;  // held, so that its inode number means nothing else as long as we compare
    PageSums sums;
  };
  std::map<std::uint32_t, Segment> segments_;  // by shmid
};

}  // namespace ferry::migrate

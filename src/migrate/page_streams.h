// The source's memory on its way: read from the processes and sent by one thread a connection.
//
// Pages that are added cross in any order, over any connection, until a mark: what was added before it has
// arrived when the other side has seen the mark on every connection.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/ids.h"
#include "base/unique_fd.h"
#include "image/page_sink.h"
#include "migrate/link.h"
#include "migrate/page_batch.h"
#include "state/memory/read_pages.h"
#include "sys/pagemap.h"

namespace ferry::migrate {

class PageStreams {
 public:
  // `control`: the remote shell, over which pages cross if `direct` is empty.  Both have to outlive this, and
  // may be used by others only between drain() or mark() and the next pages.
  PageStreams(Link& control, std::vector<Link>& direct, bool compress);
  PageStreams(const PageStreams&) = delete;
  PageStreams& operator=(const PageStreams&) = delete;
  ~PageStreams();

  // Memory of a process, which may run.  A page that cannot be read is left out: it has just been unmapped, and
  // if it comes back it counts as written.  `memory`: its /proc/PID/mem, needed for what may not be read otherwise.
  void add(image::Name pagemap, HostPid pid, std::shared_ptr<const UniqueFd> memory,
           const std::vector<sys::PageRange>& ranges, state::memory::Reading reading = state::memory::Reading::fast);
  // Pages that have to arrive in order, and those before them of the same pagemap.
  Result<void> send_in_order(PageBatch& batch);
  // Until everything has left; `meanwhile` is called ten times a second.  Errors: the first of any connection.
  Result<void> drain(const std::function<void()>& meanwhile = {});
  // Drains, and says so to the other side, on every connection; the value is what to tell it to wait for.
  // 0 if the remote shell carries the pages, where order says it all.  No pages may follow the last one.
  Result<std::uint64_t> mark(bool last);

  // The tree is about to be stopped: from now on the threads run as fast as they can, and wait for nobody for long.
  // Before, they leave the processors to the container.
  void hurry();

  [[nodiscard]] bool direct() const { return direct_; }
  // So far: content of pages that are not zeros, and what crossed for them.
  [[nodiscard]] std::uint64_t content_bytes() const { return content_bytes_; }
  [[nodiscard]] std::uint64_t wire_bytes() const { return wire_bytes_; }

 private:
  struct Job {
    image::Name pagemap;
    HostPid pid;
    std::shared_ptr<const UniqueFd> memory;
    std::vector<sys::PageRange> ranges;  // of one batch
    state::memory::Reading reading;
  };
  struct Worker {
    Link* link = nullptr;
    std::mutex in_use;  // of the link
    PageBatch batch;
    std::atomic<int> tid = 0;
    std::thread thread;
  };
  void run(Worker& worker);
  Result<void> read_and_send(Worker& worker, const Job& job);
  Result<void> send(Worker& worker, PageBatch& batch);

  const bool compress_;
  const bool direct_;
  const int nice_;  // of whoever made this
  std::vector<std::unique_ptr<Worker>> workers_;
  std::atomic<std::uint64_t> content_bytes_ = 0;
  std::atomic<std::uint64_t> wire_bytes_ = 0;
  std::uint64_t marks_ = 0;

  std::mutex lock_;  // of what follows
  std::condition_variable work_or_end_;
  std::condition_variable idle_;
  std::deque<Job> jobs_;
  std::size_t busy_ = 0;
  bool ending_ = false;
  Result<void> failed_;
};

// The pages of one pagemap, in order, as the engine gives them.  The first batch may be one without pages, so
// that an empty pagemap arrives as well.
class OrderedPages : public image::PageSink {
 public:
  OrderedPages(PageStreams& streams, image::Name pagemap) : streams_(streams), pagemap_(pagemap) {
    batch_.begin(pagemap);
  }
  void describe(std::uint64_t vaddr, std::uint64_t page_count, std::uint32_t flags) override;
  Result<void> append(std::span<const std::byte> pages) override;
  Result<void> finish() override;

 private:
  struct Range {
    std::uint64_t vaddr = 0;
    std::uint64_t bytes = 0;
  };
  PageStreams& streams_;
  image::Name pagemap_;
  PageBatch batch_;
  std::vector<Range> ranges_;  // present, in order
  std::size_t current_ = 0;
  std::uint64_t filled_ = 0;  // bytes of the current one
};

}  // namespace ferry::migrate

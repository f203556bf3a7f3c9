// From a stopped process into pages-N.img.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "state/memory/memory.h"
#include "state/memory/pages.h"
#include "state/memory/read_pages.h"
#include "sys/file.h"
#include "sys/memory.h"
#include "sys/pagemap.h"

namespace ferry::state::memory {
namespace {

constexpr std::size_t kBuffer = 256U << 10;  // stays in the cache between reading and writing
constexpr std::uint64_t kWorthAThread = 8U << 20;  // bytes
constexpr std::size_t kMaxRanges = 512;    // process_vm_readv(2) takes at most IOV_MAX (1024)

// Takes full buffers to the sink on a thread of its own, so that reading the next and writing the last go on
// at once.  The thread is started when that is worth its while: a small process never has one.
class Conveyor {
 public:
  struct Range {
    std::uint64_t start, pages;
    std::uint32_t flags;
  };
  struct Buffer {
    std::vector<Range> ranges;  // that begin in it
    std::vector<std::byte> bytes;
    std::size_t used = 0;
  };
  // Only one thread at a time talks to the sink: this way everything reaches it.
  static Result<void> deliver(image::PageSink& sink, Buffer& buffer) {
    for (const Range& range : buffer.ranges) {
      sink.describe(range.start, range.pages, range.flags);
    }
    buffer.ranges.clear();
    const std::size_t size = std::exchange(buffer.used, 0);
    return size == 0 ? Result<void>() : sink.append(std::span<const std::byte>(buffer.bytes).first(size));
  }

  explicit Conveyor(image::PageSink& sink) : sink_(sink) {}
  ~Conveyor() { (void)stop(); }
  Conveyor(const Conveyor&) = delete;
  Conveyor& operator=(const Conveyor&) = delete;

  // An empty buffer to fill.
  std::unique_ptr<Buffer> take() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !free_.empty() || made_ < kBuffers; });
    if (free_.empty()) {
      ++made_;
      auto buffer = std::make_unique<Buffer>();
      buffer->bytes.resize(kBuffer);
      return buffer;
    }
    auto buffer = std::move(free_.back());
    free_.pop_back();
    return buffer;
  }
  Result<void> put(std::unique_ptr<Buffer> full) {
    if (!thread_.joinable() && delivered_ < kWorthAThread) {
      delivered_ += full->used;
      FERRY_CHECK(deliver(sink_, *full));
      free_.push_back(std::move(full));
      return {};
    }
    const std::lock_guard lock(mutex_);
    full_.push_back(std::move(full));
    if (!thread_.joinable()) {
      thread_ = std::thread([this] { run(); });
    }
    changed_.notify_all();
    return {};
  }
  // Waits until everything is written.
  Result<void> stop() {
    {
      const std::lock_guard lock(mutex_);
      quit_ = true;
    }
    changed_.notify_all();
    if (thread_.joinable()) {
      thread_.join();
    }
    return outcome_;
  }
  [[nodiscard]] bool started() const { return thread_.joinable(); }

 private:
  static constexpr std::size_t kBuffers = 8;

  void run() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [&] { return !full_.empty() || quit_; });
      if (full_.empty()) {
        return;
      }
      auto buffer = std::move(full_.front());
      full_.pop_front();
      lock.unlock();
      if (outcome_.has_value()) {
        outcome_ = deliver(sink_, *buffer);
      }
      lock.lock();
      buffer->used = 0;
      buffer->ranges.clear();
      free_.push_back(std::move(buffer));
      changed_.notify_all();
    }
  }

  image::PageSink& sink_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::unique_ptr<Buffer>> full_;
  std::vector<std::unique_ptr<Buffer>> free_;
  std::size_t made_ = 0;
  std::uint64_t delivered_ = 0;  // bytes, before there was a thread
  bool quit_ = false;
  Result<void> outcome_;  // the thread's, until it has ended
  std::thread thread_;
};

// Gathers scattered ranges into buffers and hands them on when they are full.
class Gather {
 public:
  Gather(DumpTask& task, image::PageSink& sink) : task_(task), sink_(sink), conveyor_(sink), buffer_(conveyor_.take()) {}

  Result<void> add(std::uint64_t start, std::uint64_t end, std::uint32_t flags) {
    buffer_->ranges.push_back({start, (end - start) / image::kPageSize, flags});
    while (start < end) {
      const std::uint64_t take = std::min<std::uint64_t>(end - start, kBuffer - reserved_);
      remote_.push_back({reinterpret_cast<void*>(start), take});
      reserved_ += take;
      start += take;
      if (reserved_ == kBuffer || remote_.size() == kMaxRanges) {
        FERRY_CHECK(read());
        if (buffer_->used == kBuffer) {
          FERRY_CHECK(conveyor_.put(std::move(buffer_)));
          buffer_ = conveyor_.take();
          reserved_ = 0;
        }
      }
    }
    return {};
  }

  Result<void> finish() {
    FERRY_CHECK(read());
    if (!conveyor_.started()) {
      return Conveyor::deliver(sink_, *buffer_);
    }
    if (buffer_->used != 0) {
      FERRY_CHECK(conveyor_.put(std::move(buffer_)));
    }
    return conveyor_.stop();
  }

 private:
  // Fetches what was noted so far.
  Result<void> read() {
    const std::size_t size = reserved_ - buffer_->used;
    if (size == 0) {
      return {};
    }
    const iovec local{buffer_->bytes.data() + buffer_->used, size};
    const ssize_t n = ::process_vm_readv(task_.pid.value, &local, 1, remote_.data(), remote_.size(), 0);
    if (n != static_cast<ssize_t>(size)) {
      // A range that the program itself may not read (PROT_NONE): range by range, past its protection.
      std::size_t at = buffer_->used;
      for (const iovec& range : remote_) {
        FERRY_CHECK(sys::read_memory(task_.pid, reinterpret_cast<std::uint64_t>(range.iov_base),
                                     std::span(buffer_->bytes).subspan(at, range.iov_len), task_.process.memory()));
        at += range.iov_len;
      }
    }
    buffer_->used = reserved_;
    remote_.clear();
    return {};
  }

  DumpTask& task_;
  image::PageSink& sink_;
  Conveyor conveyor_;
  std::unique_ptr<Conveyor::Buffer> buffer_;
  std::vector<iovec> remote_;
  std::size_t reserved_ = 0;  // bytes of the buffer that are spoken for
};

struct Marked {
  sys::PageRange range;
  std::uint32_t flags;
};

Result<void> copy_out(DumpTask& task, const std::vector<Marked>& all, std::uint64_t bytes, image::PageSink& sink) {
  if (const std::span<std::byte> room = sink.claim(bytes); !room.empty()) {
    std::vector<sys::PageRange> ranges;
    ranges.reserve(all.size());
    for (const Marked& m : all) {
      sink.describe(m.range.start, m.range.pages(), m.flags);
      ranges.push_back(m.range);
    }
    return read_pages(task, std::move(ranges), room);
  }
  Gather gather(task, sink);
  for (const Marked& m : all) {
    FERRY_CHECK(gather.add(m.range.start, m.range.end, m.flags));
  }
  return gather.finish();
}

}  // namespace

Result<void> save_pages(DumpTask& task, DumpContext& context, DumpReport& report) {
  FERRY_TRY(const UniqueFd pagemap, sys::open_at(task.proc.get(), "pagemap", O_RDONLY));
  const image::Name name{image::Type::pagemap, static_cast<std::uint64_t>(task.ns_pid.value)};
  FERRY_TRY(const auto writer, context.open_pages(name));
  std::vector<Marked> all;
  std::uint64_t bytes = 0;
  for (const pb::VmaEntry& vma : task.mm->vmas()) {
    const Kept what = kept(vma);
    if (what == Kept::nothing) {
      continue;
    }
    std::vector<sys::PageRange> ranges;
    FERRY_CHECK(add_kept(what, pagemap.get(), vma.start(), vma.end(), ranges));
    report.pages_scanned += (vma.end() - vma.start()) / image::kPageSize;
    // CRIU's mark for what a lazy restore may leave for later: private anonymous memory, the vDSO apart.
    if (context.options.skip_memory) {
      continue;
    }
    const std::uint32_t flags = image::kPresent | ((vma.status() & (kAnonPrivate | kVdso)) == kAnonPrivate &&
                                                           (vma.flags() & MAP_LOCKED) == 0
                                                       ? std::uint32_t{image::kLazy}
                                                       : 0U);
    for (const sys::PageRange& range : ranges) {
      all.push_back({range, flags});
      bytes += range.end - range.start;
      report.pages_written += range.pages();
    }
  }
  FERRY_CHECK(copy_out(task, all, bytes, *writer));
  return writer->finish();
}

}  // namespace ferry::state::memory

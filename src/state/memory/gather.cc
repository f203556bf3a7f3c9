#include "state/memory/gather.h"

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <span>
#include <thread>
#include <utility>

#include "image/page_store.h"
#include "sys/memory.h"

namespace ferry::state::memory {
namespace {

constexpr std::size_t kBuffer = 256U << 10;        // stays in the cache between reading and writing
constexpr std::uint64_t kWorthAThread = 8U << 20;  // bytes
constexpr std::size_t kMaxRanges = 512;            // process_vm_readv(2) takes at most IOV_MAX (1024)

}  // namespace

struct PageBuffer {
  struct Range {
    std::uint64_t start, pages;
    std::uint32_t flags;
  };
  std::vector<Range> ranges;  // that begin in it
  std::vector<std::byte> bytes;
  std::size_t used = 0;
};

// Takes full buffers to the sink on a thread of its own, so that reading the next and writing the last go on
// at once.  The thread is started when that is worth its while: a small process never has one.
class Conveyor {
 public:
  // Only one thread at a time talks to the sink: this way everything reaches it.
  static Result<void> deliver(image::PageSink& sink, PageBuffer& buffer) {
    for (const PageBuffer::Range& range : buffer.ranges) {
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
  std::unique_ptr<PageBuffer> take() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !free_.empty() || made_ < kBuffers; });
    if (free_.empty()) {
      ++made_;
      auto buffer = std::make_unique<PageBuffer>();
      buffer->bytes.resize(kBuffer);
      return buffer;
    }
    auto buffer = std::move(free_.back());
    free_.pop_back();
    return buffer;
  }
  Result<void> put(std::unique_ptr<PageBuffer> full) {
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
  std::deque<std::unique_ptr<PageBuffer>> full_;
  std::vector<std::unique_ptr<PageBuffer>> free_;
  std::size_t made_ = 0;
  std::uint64_t delivered_ = 0;  // bytes, before there was a thread
  bool quit_ = false;
  Result<void> outcome_;  // the thread's, until it has ended
  std::thread thread_;
};

Gather::Gather(HostPid pid, int memory, Source source, Reading reading, image::PageSink& sink)
    : pid_(pid),
      memory_(memory),
      source_(source),
      reading_(reading),
      sink_(sink),
      conveyor_(std::make_unique<Conveyor>(sink)),
      buffer_(conveyor_->take()) {}
Gather::~Gather() = default;

Result<void> Gather::add(std::uint64_t start, std::uint64_t end, std::uint32_t flags) {
  buffer_->ranges.push_back({start, (end - start) / image::kPageSize, flags});
  if ((flags & image::kPresent) == 0) {
    return {};
  }
  while (start < end) {
    const std::uint64_t take = std::min<std::uint64_t>(end - start, kBuffer - reserved_);
    remote_.push_back({reinterpret_cast<void*>(start), take});
    reserved_ += take;
    start += take;
    if (reserved_ == kBuffer || remote_.size() == kMaxRanges) {
      FERRY_CHECK(read());
      if (buffer_->used == kBuffer) {
        FERRY_CHECK(conveyor_->put(std::move(buffer_)));
        buffer_ = conveyor_->take();
        reserved_ = 0;
      }
    }
  }
  return {};
}

Result<void> Gather::finish() {
  FERRY_CHECK(read());
  if (!conveyor_->started()) {
    return Conveyor::deliver(sink_, *buffer_);
  }
  if (buffer_->used != 0 || !buffer_->ranges.empty()) {
    FERRY_CHECK(conveyor_->put(std::move(buffer_)));
  }
  return conveyor_->stop();
}

// Fetches what was noted so far.
Result<void> Gather::read() {
  const std::size_t size = reserved_ - buffer_->used;
  if (size == 0) {
    return {};
  }
  const iovec local{buffer_->bytes.data() + buffer_->used, size};
  const ssize_t n =
      reading_ == Reading::sharing ? -1 : ::process_vm_readv(pid_.value, &local, 1, remote_.data(), remote_.size(), 0);
  if (n != static_cast<ssize_t>(size)) {
    // Or a range that the program itself may not read (PROT_NONE): range by range, past its protection.
    std::size_t at = buffer_->used;
    for (const iovec& range : remote_) {
      FERRY_CHECK(read_one(range, at));
      at += range.iov_len;
    }
  }
  buffer_->used = reserved_;
  remote_.clear();
  return {};
}

Result<void> Gather::read_one(const iovec& range, std::size_t at) {
  const auto into = std::span(buffer_->bytes).subspan(at, range.iov_len);
  const auto start = reinterpret_cast<std::uint64_t>(range.iov_base);
  const auto read = [&](std::uint64_t from, std::span<std::byte> to) {
    return reading_ == Reading::sharing ? read_sharing(memory_, from, to) : sys::read_memory(pid_, from, to, memory_);
  };
  auto whole = read(start, into);
  if (whole.has_value() || source_ == Source::stopped) {
    return whole;
  }
  for (std::uint64_t done = 0; done < range.iov_len; done += image::kPageSize) {
    const auto page = into.subspan(static_cast<std::size_t>(done), image::kPageSize);
    if (!read(start + done, page).has_value()) {
      std::fill(page.begin(), page.end(), std::byte{0});
      lost_.push_back({start + done, start + done + image::kPageSize});
    }
  }
  return {};
}

}  // namespace ferry::state::memory

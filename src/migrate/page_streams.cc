#include "migrate/page_streams.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "image/page_store.h"
#include "migrate/message.pb.h"
#include "sys/memory.h"

namespace ferry::migrate {
namespace {

using image::kPageSize;

// While the container runs, its own work comes first.
constexpr int kNiceMeanwhile = 10;
constexpr std::chrono::milliseconds kTell(100);
// While it stands still the container does not wait longer than that for a destination that takes nothing.
constexpr std::chrono::seconds kPatienceInThePause(10);

std::uint64_t bytes_of(const std::vector<sys::PageRange>& ranges) {
  std::uint64_t out = 0;
  for (const sys::PageRange& range : ranges) {
    out += range.end - range.start;
  }
  return out;
}

}  // namespace

PageStreams::PageStreams(Link& control, std::vector<Link>& direct, bool compress)
    : compress_(compress), direct_(!direct.empty()), nice_(::getpriority(PRIO_PROCESS, 0)) {
  const auto add_worker = [&](Link& link) {
    workers_.push_back(std::make_unique<Worker>());
    workers_.back()->link = &link;
  };
  for (Link& link : direct) {
    add_worker(link);
  }
  if (direct.empty()) {
    add_worker(control);
  }
  for (auto& worker : workers_) {
    worker->thread = std::thread([this, &one = *worker] { run(one); });
  }
}

PageStreams::~PageStreams() {
  {
    const std::lock_guard<std::mutex> held(lock_);
    ending_ = true;
    jobs_.clear();
  }
  work_or_end_.notify_all();
  for (auto& worker : workers_) {
    worker->thread.join();
  }
}

void PageStreams::add(image::Name pagemap, HostPid pid, std::shared_ptr<const UniqueFd> memory,
                      const std::vector<sys::PageRange>& ranges, state::memory::Reading reading) {
  Job job{pagemap, pid, std::move(memory), {}, reading};
  std::uint64_t room = kBatchContent;
  std::vector<Job> made;
  for (const sys::PageRange& range : ranges) {
    for (std::uint64_t at = range.start; at < range.end;) {
      const std::uint64_t take = std::min(range.end - at, room);
      job.ranges.push_back({at, at + take});
      at += take;
      room -= take;
      if (room == 0) {
        made.push_back(job);
        job.ranges.clear();
        room = kBatchContent;
      }
    }
  }
  if (!job.ranges.empty()) {
    made.push_back(std::move(job));
  }
  {
    const std::lock_guard<std::mutex> held(lock_);
    std::move(made.begin(), made.end(), std::back_inserter(jobs_));
  }
  work_or_end_.notify_all();
}

void PageStreams::run(Worker& worker) {
  worker.tid = ::gettid();
  ::setpriority(PRIO_PROCESS, static_cast<id_t>(worker.tid.load()), std::max(nice_, kNiceMeanwhile));
  std::unique_lock<std::mutex> held(lock_);
  for (;;) {
    work_or_end_.wait(held, [&] { return ending_ || !jobs_.empty(); });
    if (ending_) {
      return;
    }
    const Job job = std::move(jobs_.front());
    jobs_.pop_front();
    ++busy_;
    held.unlock();
    auto done = read_and_send(worker, job);
    held.lock();
    --busy_;
    if (!done) {
      jobs_.clear();
      if (failed_) {
        failed_ = std::move(done);
      }
    }
    if (busy_ == 0 && jobs_.empty()) {
      idle_.notify_all();
    }
  }
}

Result<void> PageStreams::read_and_send(Worker& worker, const Job& job) {
  PageBatch& batch = worker.batch;
  batch.begin(job.pagemap);
  const auto tail = batch.tail().first(bytes_of(job.ranges));
  const bool sharing = job.reading == state::memory::Reading::sharing;
  std::uint64_t read = sharing ? state::memory::read_sharing(job.memory->get(), job.ranges, tail)
                               : sys::read_ranges(job.pid, job.ranges, tail);
  for (const sys::PageRange& range : job.ranges) {
    const std::uint64_t size = range.end - range.start;
    const std::uint64_t here = std::min(size, read) / kPageSize * kPageSize;
    batch.keep(range.start, here);
    read = here < size ? 0 : read - size;
    // The rest a page at a time, through /proc/PID/mem where protection forbids it otherwise.
    for (std::uint64_t at = range.start + here; at < range.end; at += kPageSize) {
      const auto page = batch.tail().first(kPageSize);
      if (sharing ? state::memory::read_sharing(job.memory->get(), at, page)
                  : sys::read_memory(job.pid, at, page, job.memory->get())) {
        batch.keep(at, kPageSize);
      } else {
        batch.drop(kPageSize);
      }
    }
  }
  return batch.empty() ? Result<void>() : send(worker, batch);
}

Result<void> PageStreams::send(Worker& worker, PageBatch& batch) {
  const std::lock_guard<std::mutex> held(worker.in_use);
  const std::uint64_t before = worker.link->sent();
  const std::uint64_t content = batch.content_bytes();
  FERRY_CHECK(batch.send(*worker.link, compress_));
  content_bytes_ += content;
  wire_bytes_ += worker.link->sent() - before;
  return {};
}

Result<void> PageStreams::send_in_order(PageBatch& batch) { return send(*workers_.front(), batch); }

Result<void> PageStreams::drain(const std::function<void()>& meanwhile) {
  std::unique_lock<std::mutex> held(lock_);
  while (!idle_.wait_for(held, kTell, [&] { return busy_ == 0 && jobs_.empty(); })) {
    if (meanwhile) {
      meanwhile();
    }
  }
  return failed_;
}

Result<std::uint64_t> PageStreams::mark(bool last) {
  FERRY_CHECK(drain());
  if (!direct_) {
    return std::uint64_t{0};
  }
  wire::Message message;
  message.mutable_mark()->set_number(++marks_);
  message.mutable_mark()->set_last(last);
  for (auto& worker : workers_) {
    const std::lock_guard<std::mutex> held(worker->in_use);
    FERRY_CHECK(worker->link->send(message));
  }
  return marks_;
}

void PageStreams::hurry() {
  for (auto& worker : workers_) {
    if (const int tid = worker->tid; tid != 0) {
      ::setpriority(PRIO_PROCESS, static_cast<id_t>(tid), nice_);
    }
    const std::lock_guard<std::mutex> held(worker->in_use);
    worker->link->give_up_after(kPatienceInThePause);
  }
}

void OrderedPages::describe(std::uint64_t vaddr, std::uint64_t page_count, std::uint32_t flags) {
  if ((flags & image::kPresent) != 0) {
    ranges_.push_back({vaddr, page_count * kPageSize});
  }
}

Result<void> OrderedPages::append(std::span<const std::byte> pages) {
  while (!pages.empty()) {
    if (current_ >= ranges_.size()) {
      return fail(Kind::invalid, "more pages than were described for {}", image::file_name(pagemap_));
    }
    const Range& range = ranges_[current_];
    const auto tail = batch_.tail();
    const auto part = pages.first(std::min<std::uint64_t>({pages.size(), range.bytes - filled_, tail.size()}));
    std::memcpy(tail.data(), part.data(), part.size());
    batch_.keep(range.vaddr + filled_, part.size());
    if (batch_.full()) {
      FERRY_CHECK(streams_.send_in_order(batch_));
    }
    filled_ += part.size();
    pages = pages.subspan(part.size());
    if (filled_ == range.bytes) {
      ++current_;
      filled_ = 0;
    }
  }
  return {};
}

Result<void> OrderedPages::finish() {
  if (current_ != ranges_.size()) {
    return fail(Kind::invalid, "fewer pages than were described for {}", image::file_name(pagemap_));
  }
  return streams_.send_in_order(batch_);
}

}  // namespace ferry::migrate

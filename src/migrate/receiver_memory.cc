#include <fcntl.h>
#include <poll.h>

#include <cerrno>
#include <chrono>
#include <mutex>

#include "base/log.h"
#include "migrate/freezer.h"
#include "migrate/receiver.h"
#include "sys/file.h"

namespace ferry::migrate {
namespace {

constexpr std::chrono::milliseconds kTell(1000);  // the logbook how much memory is missing

}  // namespace

Result<bool> Receiver::precopy() {
  const std::lock_guard<std::mutex> held(where_pages_go_);
  FERRY_CHECK(twin_->grow_ahead(pages_->directory()).during("making skeletons on the destination"));
  FERRY_TRY(segments_, SegmentsIn::make(looked_at_));
  twin_->hand_in(segments_.handed_in());
  return done();
}

Result<bool> Receiver::post_copy() {
  if (intake_ != nullptr) {
    return fail(Kind::corrupt, "{} orders twice to fetch memory later", link_.peer());
  }
  FERRY_TRY(intake_, PostCopyIntake::open(move_, freeze_cgroup_, link_.peer()));
  FERRY_CHECK(book_->change([](Entry& entry) { entry.pages_due = true; }));
  return done();
}

Result<bool> Receiver::stale(const wire::Stale& stale) {
  std::vector<sys::PageRange> ranges;
  for (int i = 0; i + 1 < stale.borders_size(); i += 2) {
    const std::uint64_t start = stale.borders(i);
    const std::uint64_t end = stale.borders(i + 1);
    if (start % image::kPageSize != 0 || end % image::kPageSize != 0 || start >= end) {
      return fail(Kind::corrupt, "{} calls {:#x}-{:#x} stale, which are no pages", link_.peer(), start, end);
    }
    ranges.push_back({start, end});
  }
  const std::lock_guard<std::mutex> held(where_pages_go_);
  FERRY_CHECK(twin_->drop_ahead(NsPid(static_cast<pid_t>(stale.pid())), ranges));
  return done();
}

Result<void> Receiver::put(image::Name name, std::span<const ArrivedPages> runs) {
  const NsPid pid(static_cast<pid_t>(name.id));
  bool to_a_segment = false;
  {
    const std::lock_guard<std::mutex> held(where_pages_go_);
    to_a_segment = segments_.has(name);
    if (!to_a_segment && (name.type != image::Type::pagemap || !twin_->is_ahead(pid))) {
      return pages_->keep(name, runs);
    }
  }
  if (to_a_segment) {
    return segments_.put(name, runs);
  }
  std::vector<sys::Placed> placed;
  for (const ArrivedPages& run : runs) {
    if (run.zeros) {
      FERRY_CHECK(twin_->zero_ahead(pid, run.vaddr, run.pages * image::kPageSize));
    } else {
      placed.push_back({run.vaddr, run.content});
    }
  }
  return twin_->write_ahead(pid, placed);
}

Result<bool> Receiver::grow() {
  FERRY_TRY(const std::string bytes, streams_.bulk().receive_text(kSetLimit));
  laps_.skip();
  FERRY_TRY(image::Set set, image::decode(bytes).during("reading the tree that arrived"));
  FERRY_TRY(const int images, pages_->complete(std::move(set)));
  laps_.add("keep images");
  FERRY_CHECK(twin_->grow(images, intake_.get()).during("building the tree on the destination"));
  if (intake_ != nullptr) {
    FERRY_CHECK(intake_->tree_is_complete().during("fetching memory for the tree on the destination"));
  }
  laps_.skip();
  pages_.reset();
  laps_.add("free images");
  stage_ = Stage::grown;
  book_->step(Step::grow);
  FERRY_CHECK(prepare_for_our_death());
  return false;
}

Result<void> Receiver::fetch_rest() {
  book_->step(Step::pages);
  const auto begin = std::chrono::steady_clock::now();
  bool has_source = true;  // on the connection that began the move, which may break as well
  for (;;) {
    pollfd ready[] = {{intake_->end(), POLLIN, 0}, {has_source ? link_.descriptor() : -1, POLLIN, 0}};
    if (::poll(ready, 2, static_cast<int>(kTell.count())) < 0 && errno != EINTR) {
      return sys_fail("poll(memory that is fetched)");
    }
    if (ready[1].revents != 0) {
      if (const auto heard = step(); !heard) {
        log::warning("{}", heard.error().message());
        has_source = false;
      }
    }
    if (!late_ && std::chrono::steady_clock::now() - begin > kHoldLimit) {
      FERRY_CHECK(
          output_is_late(Error{.kind = Kind::gone, .what = "the container's memory is being fetched", .during = {}}));
    }
    const PostCopyIntake::Standing standing = intake_->standing();
    book_->fetching(standing.missing_bytes / image::kPageSize, standing.connected);
    if (standing.ended) {
      break;
    }
  }
  const auto took = std::chrono::steady_clock::now() - begin;
  auto report = intake_->result();
  if (!report) {
    // It would run on with zeros where its memory was.
    FERRY_CHECK(kill_frozen(freeze_cgroup_));
    return tl::unexpected<Error>(std::move(report).error());
  }
  // Before the source is told: whoever asks later gets the same answer.
  FERRY_CHECK(book_->change([](Entry& entry) { entry.pages_due = false; }));
  intake_->tell_source();
  wire::Fetched& fetched = fetched_.emplace();
  fetched.set_pages(report->pages);
  fetched.set_ms(std::chrono::duration<double, std::milli>(took).count());
  fetched.set_faults(report->faults);
  fetched.set_median_us(report->median_us);
  fetched.set_p99_us(report->p99_us);
  intake_.reset();
  return {};
}

}  // namespace ferry::migrate

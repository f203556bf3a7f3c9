#include "engine/tracker_keeper.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <memory>

#include "state/memory/pages.h"
#include "sys/file.h"
#include "sys/proc.h"
#include "tracee/deadline.h"

namespace ferry::engine {
namespace {

using state::memory::Then;
using state::memory::Tracker;

constexpr std::size_t kPage = 4096;

// A child that stops, writes one page of its memory when it is continued, and stops again.
class Writer {
 public:
  Writer() {
    memory_ =
        static_cast<char*>(::mmap(nullptr, 4 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ::memset(memory_, 1, 4 * kPage);
      ::raise(SIGSTOP);
      memory_[2 * kPage] = 2;
      ::raise(SIGSTOP);
      ::_exit(0);
    }
    wait_until_stopped();
  }
  ~Writer() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    ::munmap(memory_, 4 * kPage);
  }
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;
  void write() const {
    ::kill(pid_, SIGCONT);
    wait_until_stopped();
  }
  [[nodiscard]] HostPid pid() const { return HostPid(pid_); }
  [[nodiscard]] std::vector<sys::PageRange> of_memory(const std::vector<sys::PageRange>& ranges) const {
    const auto start = reinterpret_cast<std::uint64_t>(memory_);
    return state::memory::common(ranges, {{start, start + 4 * kPage}});
  }

 private:
  void wait_until_stopped() const {
    int status = 0;
    ASSERT_EQ(::waitpid(pid_, &status, WUNTRACED), pid_);
    ASSERT_TRUE(WIFSTOPPED(status));
  }
  char* memory_ = nullptr;
  pid_t pid_ = -1;
};

TEST(TrackerKeeper, KeepsWhatWasWrittenForTheNextRun) {
  const Writer writer;
  {
    auto tracker = Tracker::install(writer.pid());
    ASSERT_TRUE(tracker.has_value()) << tracker.error().message();
    ASSERT_TRUE(tracker->scan(Then::protect).has_value());
    tracker->distrust({{4096, 8192}});
    const auto started = TrackerKeeper::start("set-1", {&*tracker});
    ASSERT_TRUE(started.has_value()) << started.error().message();
  }
  writer.write();
  const auto keepers = TrackerKeeper::find({writer.pid()});
  ASSERT_TRUE(keepers.has_value()) << keepers.error().message();
  ASSERT_EQ(keepers->size(), 1U);
  EXPECT_EQ(keepers->front().set(), "set-1");
  auto trackers = keepers->front().take();
  ASSERT_TRUE(trackers.has_value()) << trackers.error().message();
  ASSERT_EQ(trackers->size(), 1U);
  EXPECT_EQ(trackers->front().distrusted().size(), 1U);
  EXPECT_TRUE(keepers->front().stop().has_value());
  EXPECT_TRUE(TrackerKeeper::find({writer.pid()})->empty());
  const auto scan = trackers->front().scan(Then::leave);
  ASSERT_TRUE(scan.has_value());
  EXPECT_EQ(state::memory::count_pages(writer.of_memory(scan->written)), 1U);
  EXPECT_EQ(state::memory::count_pages(writer.of_memory(scan->unchanged)), 3U);
}

TEST(TrackerKeeper, IsNotForOthersAndEndsWithItsProcesses) {
  auto writer = std::make_unique<Writer>();
  {
    auto tracker = Tracker::install(writer->pid());
    ASSERT_TRUE(tracker.has_value());
    ASSERT_TRUE(TrackerKeeper::start("set-1", {&*tracker}).has_value());
  }
  EXPECT_TRUE(TrackerKeeper::find({HostPid(::getpid())})->empty());
  const HostPid pid = writer->pid();
  EXPECT_EQ(TrackerKeeper::find({pid})->size(), 1U);
  writer.reset();
  const tracee::Deadline deadline(std::chrono::seconds(10));
  while (!TrackerKeeper::find({pid})->empty()) {
    ASSERT_FALSE(deadline.passed()) << "10 s after its process the tracker was still there";
    ::sched_yield();
  }
}

TEST(TrackerKeeper, AnswersForNoSetOnceItsMarksAreVoid) {
  const Writer writer;
  {
    auto tracker = Tracker::install(writer.pid());
    ASSERT_TRUE(tracker.has_value());
    ASSERT_TRUE(TrackerKeeper::start("set-1", {&*tracker}).has_value());
  }
  const auto first = TrackerKeeper::find({writer.pid()});
  ASSERT_EQ(first->size(), 1U);
  ASSERT_TRUE(first->front().void_marks().has_value());
  const auto again = TrackerKeeper::find({writer.pid()});
  ASSERT_EQ(again->size(), 1U) << "it still holds the userfaultfd and has to be found, to be stopped";
  EXPECT_EQ(again->front().set(), "");
  EXPECT_TRUE(again->front().stop().has_value());
}

}  // namespace
}  // namespace ferry::engine

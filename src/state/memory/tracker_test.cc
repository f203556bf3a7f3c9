#include "state/memory/tracker.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <functional>

#include "state/memory/device_writes.h"
#include "state/memory/pages.h"
#include "sys/file.h"
#include "tracee/deadline.h"

namespace ferry::state::memory {
namespace {

constexpr std::uint64_t kPage = 4096;

// A child that does one step after another, each when it is told to.
class Subject {
 public:
  using Steps = std::vector<std::function<void()>>;
  explicit Subject(const Steps& steps) {
    EXPECT_EQ(::pipe2(go_, O_CLOEXEC), 0);
    EXPECT_EQ(::pipe2(done_, O_CLOEXEC), 0);
    pid_ = ::fork();
    if (pid_ == 0) {
      char byte = 0;
      for (const auto& step : steps) {
        if (::read(go_[0], &byte, 1) != 1) {
          ::_exit(1);
        }
        step();
        if (::write(done_[1], &byte, 1) != 1) {
          ::_exit(1);
        }
      }
      for (;;) {
        ::pause();
      }
    }
  }
  ~Subject() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    for (const int fd : {go_[0], go_[1], done_[0], done_[1]}) {
      ::close(fd);
    }
  }
  Subject(const Subject&) = delete;
  Subject& operator=(const Subject&) = delete;
  void step() const {
    char byte = 0;
    ASSERT_EQ(::write(go_[1], &byte, 1), 1);
    ASSERT_EQ(::read(done_[0], &byte, 1), 1);
  }
  // The next step does not come back.
  void start_step() const {
    char byte = 0;
    ASSERT_EQ(::write(go_[1], &byte, 1), 1);
  }
  [[nodiscard]] HostPid pid() const { return HostPid(pid_); }
  [[nodiscard]] std::string proc(const std::string& file) const {
    return sys::read_file(fmt::format("/proc/{}/{}", pid_, file)).value_or("");
  }

 private:
  pid_t pid_ = -1;
  int go_[2] = {-1, -1}, done_[2] = {-1, -1};
};

class TrackerTest : public ::testing::Test {
 protected:
  static char* map(std::size_t pages, int flags = MAP_PRIVATE | MAP_ANONYMOUS, int fd = -1) {
    void* at = ::mmap(nullptr, pages * kPage, PROT_READ | PROT_WRITE, flags, fd, 0);
    EXPECT_NE(at, MAP_FAILED);
    return static_cast<char*>(at);
  }
  // A fixed address that nothing uses, for what the child maps.
  static char* place(std::size_t pages) {
    char* at = map(pages);
    ::munmap(at, pages * kPage);
    return at;
  }
  static char* map_at(char* at, std::size_t pages) {
    return static_cast<char*>(
        ::mmap(at, pages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
  }
  static void put(char* at, std::size_t page) { at[page * kPage] = static_cast<char>(at[page * kPage] + 1); }
  static void put_all(char* at, std::size_t pages) {
    for (std::size_t i = 0; i < pages; ++i) {
      put(at, i);
    }
  }
  static std::vector<std::uint64_t> in(const std::vector<sys::PageRange>& ranges, const char* at, std::size_t pages) {
    const auto start = reinterpret_cast<std::uint64_t>(at);
    std::vector<std::uint64_t> out;
    for (const auto& r : common(ranges, {{start, start + pages * kPage}})) {
      for (std::uint64_t page = r.start; page < r.end; page += kPage) {
        out.push_back((page - start) / kPage);
      }
    }
    return out;
  }
  using Pages = std::vector<std::uint64_t>;
  static Tracker install(const Subject& subject) {
    auto tracker = Tracker::install(subject.pid());
    EXPECT_TRUE(tracker.has_value()) << tracker.error().message();
    return std::move(*tracker);
  }
  static Scan scan(Tracker& tracker, Then then = Then::protect) {
    auto out = tracker.scan(then);
    EXPECT_TRUE(out.has_value()) << out.error().message();
    return std::move(*out);
  }
};

TEST_F(TrackerTest, FindsWhatIsWrittenBetweenScans) {
  char* memory = map(16);
  const Subject subject({[&] { put_all(memory, 16); },
                         [&] {
                           put(memory, 3);
                           put(memory, 9);
                         },
                         [] {}});
  subject.step();
  Tracker tracker = install(subject);
  const Scan first = scan(tracker);
  EXPECT_EQ(in(first.written, memory, 16).size(), 16U);
  EXPECT_TRUE(in(first.unchanged, memory, 16).empty());
  subject.step();
  const Scan second = scan(tracker);
  EXPECT_EQ(in(second.written, memory, 16), (Pages{3, 9}));
  EXPECT_EQ(in(second.unchanged, memory, 16).size(), 14U);
  subject.step();
  EXPECT_TRUE(in(scan(tracker).written, memory, 16).empty());
}

TEST_F(TrackerTest, LeavesMarksForTheNextScanIfAsked) {
  char* memory = map(4);
  const Subject subject({[&] { put_all(memory, 4); }, [&] { put(memory, 1); }});
  subject.step();
  Tracker tracker = install(subject);
  scan(tracker);
  subject.step();
  EXPECT_EQ(in(scan(tracker, Then::leave).written, memory, 4), Pages{1});
  EXPECT_EQ(in(scan(tracker, Then::leave).written, memory, 4), Pages{1});
}

TEST_F(TrackerTest, TakesNewAndMovedMappingsAsWritten) {
  char* memory = map(8);
  char* fresh = place(20);
  char* target = fresh + 10 * kPage;
  const Subject subject({[&] { put_all(memory, 8); },
                         [&] {
                           put_all(map_at(fresh, 8), 8);
                           ::mremap(memory, 8 * kPage, 8 * kPage, MREMAP_MAYMOVE | MREMAP_FIXED, target);
                         },
                         [&] {
                           put(fresh, 2);
                           put(target, 5);
                         }});
  subject.step();
  Tracker tracker = install(subject);
  scan(tracker);
  subject.step();
  const Scan second = scan(tracker);
  EXPECT_EQ(in(second.written, fresh, 8).size(), 8U);
  EXPECT_EQ(in(second.written, target, 8).size(), 8U);
  EXPECT_TRUE(in(second.written, memory, 8).empty());
  EXPECT_TRUE(in(second.unchanged, memory, 8).empty());
  subject.step();
  const Scan third = scan(tracker);
  EXPECT_EQ(in(third.written, fresh, 8), Pages{2});
  EXPECT_EQ(in(third.written, target, 8), Pages{5});
}

TEST_F(TrackerTest, TakesAMappingInThePlaceOfAnotherAsWritten) {
  char* memory = map(4);
  const Subject subject({[&] { put_all(memory, 4); }, [&] { put_all(map_at(memory, 4), 2); }});
  subject.step();
  Tracker tracker = install(subject);
  scan(tracker);
  subject.step();
  const Scan last = scan(tracker, Then::leave);
  EXPECT_EQ(in(last.written, memory, 4), (Pages{0, 1}));
  EXPECT_TRUE(in(last.unchanged, memory, 4).empty());
}

TEST_F(TrackerTest, ForgetsPagesThatWereGivenUp) {
  char* memory = map(8);
  const Subject subject({[&] { put_all(memory, 8); },
                         [&] {
                           ::madvise(memory, 4 * kPage, MADV_DONTNEED);
                           put(memory, 1);
                         }});
  subject.step();
  Tracker tracker = install(subject);
  scan(tracker);
  subject.step();
  const Scan last = scan(tracker);
  EXPECT_EQ(in(last.written, memory, 8), Pages{1});
  EXPECT_EQ(in(last.unchanged, memory, 8), (Pages{4, 5, 6, 7}));
}

TEST_F(TrackerTest, KnowsAFilesPagesFromOnesOwn) {
  const int fd = ::memfd_create("tracker-test", MFD_CLOEXEC);
  ASSERT_EQ(::ftruncate(fd, 8 * kPage), 0);
  char* memory = map(8, MAP_PRIVATE, fd);
  const Subject subject({[&] { put_all(memory, 4); },
                         [&] {
                           put(memory, 1);
                           ::madvise(memory + 2 * kPage, kPage, MADV_DONTNEED);
                           (void)::ftruncate(fd, 3 * kPage);
                         }});
  subject.step();
  Tracker tracker = install(subject);
  EXPECT_EQ(in(scan(tracker).written, memory, 8), (Pages{0, 1, 2, 3}));
  subject.step();
  const Scan last = scan(tracker);
  EXPECT_EQ(in(last.written, memory, 8), Pages{1});
  EXPECT_EQ(in(last.unchanged, memory, 8), Pages{0});
  ::close(fd);
}

TEST_F(TrackerTest, SeesWritesFromOutside) {
  char* memory = map(4);
  const Subject subject({[&] { put_all(memory, 4); }});
  subject.step();
  Tracker tracker = install(subject);
  scan(tracker);
  char byte = 'x';
  const iovec local{&byte, 1};
  const iovec remote{memory + 2 * kPage, 1};
  ASSERT_EQ(::process_vm_writev(subject.pid().value, &local, 1, &remote, 1, 0), 1);
  EXPECT_EQ(in(scan(tracker).written, memory, 4), Pages{2});
}

TEST_F(TrackerTest, SaysWhenTheProgramIsAnother) {
  const Subject subject({[] {}, [] { ::execl("/bin/sleep", "sleep", "100", nullptr); }});
  subject.step();
  Tracker tracker = install(subject);
  scan(tracker);
  subject.start_step();
  for (const tracee::Deadline deadline(std::chrono::seconds(10)); subject.proc("comm") != "sleep\n";) {
    ASSERT_FALSE(deadline.passed()) << "10 s passed and the child is not sleep";
    ::sched_yield();
  }
  const Scan scanned = scan(tracker);
  EXPECT_TRUE(scanned.renewed);
  EXPECT_TRUE(scanned.unchanged.empty());
  EXPECT_FALSE(scanned.written.empty());
  Tracker anew = install(subject);
  scan(anew);
  EXPECT_FALSE(scan(anew).unchanged.empty());
}

TEST_F(TrackerTest, SaysWhenTheProcessIsGone) {
  auto subject = std::make_unique<Subject>(Subject::Steps{[] {}});
  Tracker tracker = install(*subject);
  const auto start_time = tracker.start_time();
  const HostPid pid = subject->pid();
  subject.reset();
  const auto scanned = tracker.scan(Then::protect);
  ASSERT_FALSE(scanned.has_value());
  EXPECT_EQ(scanned.error().kind, Kind::gone);
  EXPECT_FALSE(Tracker::adopt(pid, start_time, UniqueFd()).has_value());
}

TEST_F(TrackerTest, LeavesNoTraceInTheProcess) {
  char* memory = map(4);
  const Subject subject({[&] { put_all(memory, 4); }});
  subject.step();
  const auto descriptors = [&] {
    return sys::list_directory(AT_FDCWD, fmt::format("/proc/{}/fd", subject.pid())).value();
  };
  const auto flags = [&] {
    std::string out;
    const std::string smaps = subject.proc("smaps");
    for (std::size_t at = 0; (at = smaps.find("VmFlags", at)) != std::string::npos; ++at) {
      out += smaps.substr(at, smaps.find('\n', at) - at);
    }
    return out;
  };
  const auto maps_before = subject.proc("maps");
  const auto flags_before = flags();
  const auto fds_before = descriptors();
  {
    Tracker tracker = install(subject);
    scan(tracker);
    EXPECT_EQ(descriptors(), fds_before);
    EXPECT_EQ(subject.proc("maps"), maps_before);
    EXPECT_NE(flags(), flags_before) << "nothing is watched";
  }
  EXPECT_EQ(flags(), flags_before);
  EXPECT_EQ(subject.proc("maps"), maps_before);
}

TEST_F(TrackerTest, DoesNotTrackAChild) {
  char* memory = map(4);
  const Subject subject({[&] { put_all(memory, 4); },
                         [&] {
                           if (::fork() == 0) {
                             ::prctl(PR_SET_PDEATHSIG, SIGKILL);
                             put(memory, 0);
                             for (;;) {
                               ::pause();
                             }
                           }
                           put(memory, 3);
                         }});
  subject.step();
  Tracker tracker = install(subject);
  scan(tracker);
  subject.step();
  EXPECT_EQ(in(scan(tracker).written, memory, 4), Pages{3});
  const auto children = sys::parse_children(subject.proc(fmt::format("task/{}/children", subject.pid()))).value();
  ASSERT_EQ(children.size(), 1U);
  auto of_child = Tracker::install(children.front());
  ASSERT_TRUE(of_child.has_value());
  EXPECT_EQ(in(scan(*of_child).written, memory, 4).size(), 4U);
  ::kill(children.front().value, SIGKILL);
}

TEST(PageRanges, AreCutByEachOther) {
  const std::vector<sys::PageRange> a{{0, 4 * kPage}, {8 * kPage, 12 * kPage}};
  const std::vector<sys::PageRange> b{{kPage, 2 * kPage}, {3 * kPage, 9 * kPage}, {20 * kPage, 21 * kPage}};
  const auto both = common(a, b);
  ASSERT_EQ(both.size(), 3U);
  EXPECT_EQ(both[2].start, 8 * kPage);
  EXPECT_EQ(both[2].end, 9 * kPage);
  EXPECT_EQ(count_pages(both) + count_pages(without(a, b)), count_pages(a));
  EXPECT_TRUE(common(both, without(a, b)).empty());
}

std::optional<std::vector<sys::PageRange>> of_ring(const std::string& text) {
  const auto info = sys::parse_fdinfo("pos:\t0\nflags:\t02000002\n" + text);
  return info.has_value() ? buffers_of_ring(*info) : std::nullopt;
}

TEST(DeviceWrites, KnowsTheBuffersOfARing) {
  const auto some = of_ring(
      "UserFiles:\t0\nUserBufs:\t3\n    0: 0x7f0000001064/100\n    1: <none>\n    2: 0x7f0000003fff/2\nPollList:\n");
  ASSERT_TRUE(some.has_value());
  ASSERT_EQ(some->size(), 2U);
  EXPECT_EQ((*some)[0].start, 0x7f0000001000U);
  EXPECT_EQ((*some)[0].end, 0x7f0000002000U);
  EXPECT_EQ((*some)[1].start, 0x7f0000003000U);
  EXPECT_EQ((*some)[1].end, 0x7f0000005000U);
  const auto none = of_ring("UserFiles:\t0\nUserBufs:\t0\nPollList:\n");
  ASSERT_TRUE(none.has_value());
  EXPECT_TRUE(none->empty());
}

TEST(DeviceWrites, DoesNotGuessWhereARingWrites) {
  EXPECT_FALSE(of_ring("SqMask:\t0x7\n").has_value()) << "the kernel was working on it";
  EXPECT_FALSE(of_ring("UserFiles:\t1\n    0: /dev/sda\nUserBufs:\t0\n").has_value());
  EXPECT_FALSE(of_ring("UserFiles:\t0\nUserBufs:\t1\n    0: 0x7f000000\n").has_value());
}

TEST(DeviceWrites, ReadsTheCallOfAThread) {
  ReadCall call;
  EXPECT_EQ(parse_call("running\n", call), CallState::running);
  EXPECT_EQ(parse_call("-1 0x7ffe 0x7f\n", call), CallState::other);
  EXPECT_EQ(parse_call("", call), CallState::other);
  EXPECT_EQ(parse_call("34 0x0 0x0 0x0 0x0 0x0 0x0 0x7ffc 0x7f\n", call), CallState::other);
  ASSERT_EQ(parse_call("17 0x3 0x7f0000001000 0x2000 0x0 0x0 0x0 0x7ffc 0x7f\n", call), CallState::reads);
  EXPECT_EQ(call.fd, 3);
  EXPECT_EQ(call.address, 0x7f0000001000U);
  EXPECT_EQ(call.length, 0x2000U);
  EXPECT_FALSE(call.vectors);
  ASSERT_EQ(parse_call("19 0x3 0x7f0000001000 0x2 0x0 0x0 0x0 0x7ffc 0x7f\n", call), CallState::reads);
  EXPECT_TRUE(call.vectors);
}

}  // namespace
}  // namespace ferry::state::memory

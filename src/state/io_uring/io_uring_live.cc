// Rings of io_uring_setup(2).
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/time_types.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <deque>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "live/live.h"
#include "state/io_uring/abi.h"

namespace ferry::live {
namespace {

using namespace state::io_uring;

struct Completion {  // io_uring_cqe but for what only wide ones have
  std::uint64_t user_data;
  std::int32_t res;
  std::uint32_t flags;
};

// A program's side of a ring: like liburing it keeps positions of its own and never reads its own words back.
class Ring {
 public:
  Ring(std::uint32_t entries, std::uint32_t flags, std::uint32_t cq_entries = 0) {
    parameters_.flags = flags | (cq_entries != 0 ? IORING_SETUP_CQSIZE : 0U);
    parameters_.cq_entries = cq_entries;
    fd_ = static_cast<int>(::syscall(SYS_io_uring_setup, entries, &parameters_));
    if (fd_ < 0) {
      error_ = errno;
      return;
    }
    rings_size_ = std::max<std::size_t>(
        parameters_.cq_off.cqes + parameters_.cq_entries * cqe_size(),
        has_array() ? parameters_.sq_off.array + parameters_.sq_entries * sizeof(std::uint32_t) : 0);
    rings_ = static_cast<char*>(map(rings_size_, IORING_OFF_SQ_RING));
    sqes_ = static_cast<char*>(map(parameters_.sq_entries * sqe_size(), IORING_OFF_SQES));
  }
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;

  [[nodiscard]] int fd() const { return fd_; }
  [[nodiscard]] int error() const { return error_; }
  [[nodiscard]] std::uint32_t room() const { return parameters_.sq_entries - (tail_ - word(parameters_.sq_off.head)); }

  // An entry that the kernel has not been told of.
  io_uring_sqe& prepare(std::uint8_t operation, int fd, std::uint64_t mark) {
    EXPECT_GE(room(), 1U);
    const std::uint32_t slot = tail_ & (parameters_.sq_entries - 1);
    auto& entry = *reinterpret_cast<io_uring_sqe*>(sqes_ + slot * sqe_size());
    std::memset(&entry, 0, sqe_size());
    entry.opcode = operation;
    entry.fd = fd;
    entry.user_data = mark;
    if (has_array()) {
      word(parameters_.sq_off.array + slot * 4) = slot;
    }
    ++tail_;
    return entry;
  }
  io_uring_sqe& prepare_transfer(std::uint8_t operation, int fd, const void* buffer, std::size_t size,
                                 std::uint64_t mark) {
    io_uring_sqe& entry = prepare(operation, fd, mark);
    entry.addr = reinterpret_cast<std::uint64_t>(buffer);
    entry.len = static_cast<std::uint32_t>(size);
    entry.off = ~std::uint64_t{0};
    return entry;
  }
  void show() { __atomic_store_n(&word(parameters_.sq_off.tail), tail_, __ATOMIC_RELEASE); }
  long submit(std::uint32_t wait = 0) {
    show();
    return enter(fd_, tail_ - word(parameters_.sq_off.head), wait, IORING_ENTER_GETEVENTS);
  }
  static long enter(int fd, std::uint32_t count, std::uint32_t wait, std::uint32_t flags) {
    return ::syscall(SYS_io_uring_enter, fd, count, wait, flags, nullptr, 0);
  }
  long register_with(unsigned operation, const void* argument, unsigned count) const {
    return ::syscall(SYS_io_uring_register, fd_, operation, argument, count);
  }

  [[nodiscard]] std::uint32_t waiting() const {
    return __atomic_load_n(&word(parameters_.cq_off.tail), __ATOMIC_ACQUIRE) - head_;
  }
  std::optional<Completion> fetch() {
    if (waiting() == 0) {
      return std::nullopt;
    }
    const std::uint32_t slot = head_ & (parameters_.cq_entries - 1);
    Completion out{};
    std::memcpy(&out, rings_ + parameters_.cq_off.cqes + slot * cqe_size(), sizeof out);
    ++head_;
    __atomic_store_n(&word(parameters_.cq_off.head), head_, __ATOMIC_RELEASE);
    return out;
  }
  // The result of the one request that was prepared, which has to be `mark`'s.
  std::int32_t result_of(std::uint64_t mark) {
    EXPECT_GE(submit(1), 0) << std::strerror(errno);
    const auto done = fetch();
    if (!done.has_value()) {
      ADD_FAILURE() << "no completion";
      return -1;
    }
    EXPECT_EQ(done->user_data, mark);
    EXPECT_FALSE(fetch().has_value());
    return done->res;
  }
  void work(std::uint64_t times) {
    for (std::uint64_t i = 0; i < times; ++i) {
      prepare(IORING_OP_NOP, -1, i);
      if (room() == 0 || i + 1 == times) {
        ASSERT_GE(submit(), 0);
        while (fetch().has_value()) {
        }
      }
    }
  }
  [[nodiscard]] std::uint32_t tail() const { return tail_; }

 private:
  [[nodiscard]] bool has_array() const { return (parameters_.flags & kNoSqArray) == 0; }
  [[nodiscard]] std::size_t sqe_size() const { return (parameters_.flags & IORING_SETUP_SQE128) != 0 ? 128 : 64; }
  [[nodiscard]] std::size_t cqe_size() const { return (parameters_.flags & IORING_SETUP_CQE32) != 0 ? 32 : 16; }
  [[nodiscard]] std::uint32_t& word(std::uint32_t offset) const {
    return *reinterpret_cast<std::uint32_t*>(rings_ + offset);
  }
  void* map(std::size_t size, off_t offset) const {
    void* at = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd_, offset);
    EXPECT_NE(at, MAP_FAILED) << std::strerror(errno);
    return at;
  }

  io_uring_params parameters_{};
  int fd_ = -1, error_ = 0;
  std::size_t rings_size_ = 0;
  char *rings_ = nullptr, *sqes_ = nullptr;
  std::uint32_t tail_ = 0, head_ = 0;
};

#define RING_OR_SKIP(ring)                                               \
  if ((ring).fd() < 0) {                                                 \
    GTEST_SKIP() << "io_uring_setup: " << std::strerror((ring).error()); \
  }

// Reads, writes, waits and does nothing.
void use(Ring& ring) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  char out[] = "through the ring", in[sizeof out] = {};
  ring.prepare_transfer(IORING_OP_WRITE, ends[1], out, sizeof out, 11);
  EXPECT_EQ(ring.result_of(11), static_cast<int>(sizeof out));
  ring.prepare_transfer(IORING_OP_READ, ends[0], in, sizeof in, 12);
  EXPECT_EQ(ring.result_of(12), static_cast<int>(sizeof in));
  EXPECT_STREQ(in, out);
  // A read that has to wait for its data.
  ring.prepare_transfer(IORING_OP_READ, ends[0], in, 1, 13);
  ASSERT_GE(ring.submit(), 0);
  EXPECT_FALSE(ring.fetch().has_value());
  ASSERT_EQ(::write(ends[1], "x", 1), 1);
  EXPECT_EQ(ring.result_of(13), 1);
  __kernel_timespec soon{0, 1'000'000};
  io_uring_sqe& timeout = ring.prepare(IORING_OP_TIMEOUT, -1, 14);
  timeout.addr = reinterpret_cast<std::uint64_t>(&soon);
  timeout.len = 1;
  EXPECT_EQ(ring.result_of(14), -ETIME);
  ring.work(1000);
  ::close(ends[0]);
  ::close(ends[1]);
}

LIVE_TEST(IoUring, GoesOnWhereItWas) {
  Ring fresh(8, 0), small(8, 0), large(256, 0, 4096);
  RING_OR_SKIP(small);
  small.work(100'003);
  use(small);
  large.work(1'000'001);
  checkpoint_here();
  use(small);
  use(large);
  use(fresh);
  checkpoint_here();
  use(large);
}

LIVE_TEST(IoUring, EveryKindOfSetup) {
  Ring plain(4, 0);
  RING_OR_SKIP(plain);
  constexpr std::uint32_t kIssuer = IORING_SETUP_SINGLE_ISSUER;
  constexpr std::uint32_t kSetups[] = {IORING_SETUP_SUBMIT_ALL | IORING_SETUP_CLAMP,
                                       IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
                                       kIssuer | IORING_SETUP_DEFER_TASKRUN,
                                       kIssuer,
                                       IORING_SETUP_SQE128 | IORING_SETUP_CQE32,
                                       kNoSqArray,
                                       kNoSqArray | kIssuer | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_SQE128};
  std::deque<Ring> rings;
  for (const std::uint32_t setup : kSetups) {
    Ring& ring = rings.emplace_back(16, setup);
    ASSERT_GE(ring.fd(), 0) << std::hex << setup << ": " << std::strerror(ring.error());
    use(ring);
  }
  checkpoint_here();
  for (Ring& ring : rings) {
    SCOPED_TRACE(&ring - &rings.front());
    use(ring);
  }
}

LIVE_TEST(IoUring, OfAThreadThatAloneMaySubmit) {
  std::atomic<int> stage = 0;
  std::optional<Ring> ring;
  std::thread thread([&] {
    ring.emplace(16, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN);
    if (ring->fd() >= 0) {
      ring->work(1003);
    }
    stage = 1;
    stage.notify_all();
    stage.wait(1);
    if (ring->fd() >= 0) {
      use(*ring);
    }
  });
  stage.wait(0);
  checkpoint_here();
  if (ring->fd() >= 0) {
    EXPECT_LT(Ring::enter(ring->fd(), 0, 0, IORING_ENTER_GETEVENTS), 0);
    EXPECT_EQ(errno, EEXIST);
  }
  stage = 2;
  stage.notify_all();
  thread.join();
  RING_OR_SKIP(*ring);
}

LIVE_TEST(IoUring, WhatWasNotSubmittedAndNotFetched) {
  Ring ring(8, 0);
  RING_OR_SKIP(ring);
  ring.work(1001);
  for (std::uint64_t i = 0; i < 3; ++i) {
    ring.prepare(IORING_OP_NOP, -1, 100 + i);
  }
  ASSERT_EQ(ring.submit(), 3);
  // One that the kernel could see, and one that only the program knows of.
  ring.prepare(IORING_OP_NOP, -1, 200);
  ring.show();
  ring.prepare(IORING_OP_NOP, -1, 201);
  checkpoint_here();
  EXPECT_EQ(ring.waiting(), 3U);
  ASSERT_EQ(ring.submit(), 2);
  for (const std::uint64_t mark : {100, 101, 102, 200, 201}) {
    const auto done = ring.fetch();
    ASSERT_TRUE(done.has_value());
    EXPECT_EQ(done->user_data, mark);
    EXPECT_EQ(done->res, 0);
  }
  EXPECT_FALSE(ring.fetch().has_value());
  use(ring);
}

LIVE_TEST(IoUring, PositionsThatDiffer) {
  Ring quiet(8, 0), loud(8, 0), sender(8, 0);
  RING_OR_SKIP(quiet);
  for (int i = 0; i < 1007; ++i) {
    quiet.prepare(IORING_OP_NOP, -1, 1).flags = IOSQE_CQE_SKIP_SUCCESS;
    ASSERT_EQ(quiet.submit(), 1);
    io_uring_sqe& message = sender.prepare(IORING_OP_MSG_RING, loud.fd(), 2);
    message.off = 77;
    ASSERT_EQ(sender.submit(), 1);
    ASSERT_EQ(sender.fetch()->res, 0);
    ASSERT_EQ(loud.fetch()->user_data, 77U);
  }
  checkpoint_here();
  use(quiet);
  use(loud);
  use(sender);
}

LIVE_TEST(IoUring, NotYetEnabled) {
  Ring ring(8, IORING_SETUP_R_DISABLED | IORING_SETUP_SINGLE_ISSUER);
  RING_OR_SKIP(ring);
  checkpoint_here();
  ring.prepare(IORING_OP_NOP, -1, 5);
  EXPECT_LT(ring.submit(), 0);
  EXPECT_EQ(errno, EBADFD);
  ASSERT_EQ(ring.register_with(IORING_REGISTER_ENABLE_RINGS, nullptr, 0), 0);
  EXPECT_EQ(ring.result_of(5), 0);
  use(ring);
}

LIVE_TEST(IoUring, SharedWithAChild) {
  Ring ring(8, 0);
  RING_OR_SKIP(ring);
  ring.work(77);
  int go[2], done[2];
  ASSERT_EQ(::pipe(go), 0);
  ASSERT_EQ(::pipe(done), 0);
  const int copy = ::dup(ring.fd());
  const pid_t child = ::fork();
  if (child == 0) {
    char byte = 0;
    const bool told = ::read(go[0], &byte, 1) == 1;
    // Positions of a fork's copy go on from where they were.
    ring.prepare(IORING_OP_NOP, -1, 42);
    ring.show();
    const bool submitted = told && Ring::enter(copy, 1, 1, IORING_ENTER_GETEVENTS) == 1;
    ::_exit(submitted && ::write(done[1], "d", 1) == 1 ? 0 : 1);
  }
  checkpoint_here();
  ASSERT_EQ(::write(go[1], "g", 1), 1);
  char byte = 0;
  ASSERT_EQ(::read(done[0], &byte, 1), 1);
  const auto one = ring.fetch();
  ASSERT_TRUE(one.has_value());
  EXPECT_EQ(one->user_data, 42U);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

LIVE_TEST(IoUring, RegisteredFiles) {
  Ring ring(8, 0);
  RING_OR_SKIP(ring);
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  const int files[] = {-1, ends[0], -1, ends[1], ends[0]};
  ASSERT_EQ(ring.register_with(IORING_REGISTER_FILES, files, 5), 0) << std::strerror(errno);
  io_uring_file_index_range range{2, 1, 0};
  ASSERT_EQ(ring.register_with(IORING_REGISTER_FILE_ALLOC_RANGE, &range, 0), 0) << std::strerror(errno);
  checkpoint_here();
  char byte = 0;
  ring.prepare_transfer(IORING_OP_WRITE, 3, "yz", 2, 1).flags = IOSQE_FIXED_FILE;
  EXPECT_EQ(ring.result_of(1), 2);
  ring.prepare_transfer(IORING_OP_READ, 1, &byte, 1, 2).flags = IOSQE_FIXED_FILE;
  EXPECT_EQ(ring.result_of(2), 1);
  EXPECT_EQ(byte, 'y');
  ring.prepare_transfer(IORING_OP_READ, 4, &byte, 1, 3).flags = IOSQE_FIXED_FILE;
  EXPECT_EQ(ring.result_of(3), 1);
  EXPECT_EQ(byte, 'z');
  ring.prepare_transfer(IORING_OP_READ, 0, &byte, 1, 4).flags = IOSQE_FIXED_FILE;
  EXPECT_EQ(ring.result_of(4), -EBADF);
  // The kernel may choose only slot 2.
  io_uring_files_update update{};
  int fresh = ::open("/dev/null", O_RDONLY);
  update.offset = IORING_FILE_INDEX_ALLOC;
  update.fds = reinterpret_cast<std::uint64_t>(&fresh);
  io_uring_sqe& allocate = ring.prepare(IORING_OP_FILES_UPDATE, -1, 5);
  allocate.addr = update.fds;
  allocate.len = 1;
  allocate.off = IORING_FILE_INDEX_ALLOC;
  EXPECT_EQ(ring.result_of(5), 1);
  EXPECT_EQ(fresh, 2);
}

LIVE_TEST(IoUring, RegisteredBuffers) {
  Ring ring(8, 0);
  RING_OR_SKIP(ring);
  constexpr std::size_t kSize = 3 * 4096;
  auto* memory =
      static_cast<char*>(::mmap(nullptr, 2 * kSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  std::memset(memory, 'a', kSize);
  const iovec buffers[] = {{nullptr, 0}, {memory + 100, kSize - 100}, {memory + kSize, 10}};
  ASSERT_EQ(ring.register_with(IORING_REGISTER_BUFFERS, buffers, 3), 0) << std::strerror(errno);
  const int file = static_cast<int>(::syscall(SYS_memfd_create, "data", 0));
  ASSERT_EQ(::pwrite(file, "0123456789", 10, 0), 10);
  ::lseek(file, 0, SEEK_SET);
  checkpoint_here();
  ring.prepare_transfer(IORING_OP_READ_FIXED, file, memory + 200, 10, 1).buf_index = 1;
  EXPECT_EQ(ring.result_of(1), 10);
  EXPECT_EQ(std::string(memory + 199, 12), "a0123456789a");
  ring.prepare_transfer(IORING_OP_WRITE_FIXED, file, memory + kSize, 10, 2).buf_index = 2;
  EXPECT_EQ(ring.result_of(2), 10);
  ring.prepare_transfer(IORING_OP_READ_FIXED, file, memory + 50, 10, 3).buf_index = 1;
  EXPECT_EQ(ring.result_of(3), -EFAULT) << "outside of the buffer";
  ring.prepare_transfer(IORING_OP_READ_FIXED, file, memory + 200, 10, 4).buf_index = 0;
  EXPECT_EQ(ring.result_of(4), -EFAULT) << "an empty slot";
}

LIVE_TEST(IoUring, RegisteredEventfd) {
  Ring ring(8, 0), idle(8, 0);
  RING_OR_SKIP(ring);
  const int told = ::eventfd(0, EFD_NONBLOCK), late = ::eventfd(0, EFD_NONBLOCK);
  ASSERT_EQ(ring.register_with(IORING_REGISTER_EVENTFD, &told, 1), 0);
  ASSERT_EQ(idle.register_with(IORING_REGISTER_EVENTFD_ASYNC, &late, 1), 0);
  ring.work(3);
  eventfd_t value = 0;
  ASSERT_EQ(::eventfd_read(told, &value), 0);
  checkpoint_here();
  EXPECT_LT(::eventfd_read(told, &value), 0) << "bringing the ring to its position must not tell";
  use(ring);
  EXPECT_EQ(::eventfd_read(told, &value), 0);
  idle.prepare(IORING_OP_NOP, -1, 1);
  EXPECT_EQ(idle.result_of(1), 0);
  EXPECT_LT(::eventfd_read(late, &value), 0) << "what completes at once is not told asynchronously";
}

LIVE_TEST(IoUring, RegisteredByItsThread) {
  Ring ring(8, 0);
  RING_OR_SKIP(ring);
  io_uring_rsrc_update place{};
  place.offset = 5;
  place.data = static_cast<std::uint64_t>(ring.fd());
  ASSERT_EQ(ring.register_with(IORING_REGISTER_RING_FDS, &place, 1), 1) << std::strerror(errno);
  checkpoint_here();
  ring.prepare(IORING_OP_NOP, -1, 9);
  ring.show();
  EXPECT_EQ(Ring::enter(5, 1, 1, IORING_ENTER_GETEVENTS | IORING_ENTER_REGISTERED_RING), 1) << std::strerror(errno);
  EXPECT_EQ(ring.fetch()->user_data, 9U);
  EXPECT_LT(Ring::enter(4, 0, 0, IORING_ENTER_REGISTERED_RING), 0);
}

LIVE_TEST(IoUring, ClockAndLimitsOfWorkers) {
  Ring ring(8, 0);
  RING_OR_SKIP(ring);
  std::uint32_t limits[2] = {3, 5};
  ASSERT_EQ(ring.register_with(IORING_REGISTER_IOWQ_MAX_WORKERS, limits, 2), 0);
  const std::uint32_t clock[4] = {CLOCK_BOOTTIME};
  ASSERT_EQ(ring.register_with(kRegisterClock, clock, 0), 0) << std::strerror(errno);
  checkpoint_here();
  std::uint32_t now[2] = {};
  ASSERT_EQ(ring.register_with(IORING_REGISTER_IOWQ_MAX_WORKERS, now, 2), 0);
  EXPECT_EQ(now[0], 3U);
  EXPECT_EQ(now[1], 5U);
  use(ring);
}

// Its workers are listed among the threads of the process, and stay for a while when they have nothing to do.
LIVE_TEST_WITH(IoUring, WithIdleWorkers, {.changes = true}) {
  Ring ring(8, 0);
  RING_OR_SKIP(ring);
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  ring.prepare_transfer(IORING_OP_WRITE, ends[1], "w", 1, 1).flags = IOSQE_ASYNC;
  ASSERT_EQ(ring.result_of(1), 1);
  checkpoint_here();
  char byte = 0;
  ring.prepare_transfer(IORING_OP_READ, ends[0], &byte, 1, 2).flags = IOSQE_ASYNC;
  EXPECT_EQ(ring.result_of(2), 1);
  EXPECT_EQ(byte, 'w');
}

LIVE_TEST_WITH(IoUring, WithIdleWorkersAmongManyThreads, {.changes = true}) {
  Ring ring(8, 0);
  RING_OR_SKIP(ring);
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  std::atomic<bool> end = false;
  std::deque<std::thread> threads;
  for (int i = 0; i < 50; ++i) {
    threads.emplace_back([&] { end.wait(false); });
  }
  ring.prepare_transfer(IORING_OP_WRITE, ends[1], "w", 1, 1).flags = IOSQE_ASYNC;
  ASSERT_EQ(ring.result_of(1), 1);
  checkpoint_here();
  char byte = 0;
  ring.prepare_transfer(IORING_OP_READ, ends[0], &byte, 1, 2).flags = IOSQE_ASYNC;
  EXPECT_EQ(ring.result_of(2), 1);
  end = true;
  end.notify_all();
  for (std::thread& thread : threads) {
    thread.join();
  }
}

// What the kernel remembers of a thread's rings has to be gone with them, or it would be refused.
LIVE_TEST(IoUring, ARingThatIsGone) {
  io_uring_params parameters{};
  const auto fd = static_cast<int>(::syscall(SYS_io_uring_setup, 8, &parameters));
  if (fd < 0) {
    GTEST_SKIP() << "io_uring_setup: " << std::strerror(errno);
  }
  ASSERT_EQ(::close(fd), 0);
  checkpoint_here();
  Ring ring(8, 0);
  use(ring);
}

LIVE_TEST_WITH(IoUring, RefusesRequestsUnderWay, {.refused = "an io_uring with 1 requests under way"}) {
  Ring ring(8, 0);
  RING_OR_SKIP(ring);
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  char byte = 0;
  ring.prepare_transfer(IORING_OP_READ, ends[0], &byte, 1, 1);
  ASSERT_EQ(ring.submit(), 1);
  checkpoint_here();
  ASSERT_EQ(::write(ends[1], "x", 1), 1);
  EXPECT_EQ(ring.result_of(1), 1);
}

LIVE_TEST_WITH(IoUring, RefusesATimer, {.refused = "an io_uring with 1 requests under way"}) {
  Ring ring(8, 0);
  RING_OR_SKIP(ring);
  __kernel_timespec hour{3600, 0};
  io_uring_sqe& timeout = ring.prepare(IORING_OP_TIMEOUT, -1, 14);
  timeout.addr = reinterpret_cast<std::uint64_t>(&hour);
  timeout.len = 1;
  ASSERT_EQ(ring.submit(), 1);
  checkpoint_here();
  ring.prepare(IORING_OP_TIMEOUT_REMOVE, -1, 15).addr = 14;
  ASSERT_EQ(ring.submit(2), 1);
  EXPECT_EQ(ring.waiting(), 2U);
}

LIVE_TEST_WITH(IoUring, RefusesCompletionsWithoutRoom, {.refused = "no room for its completions"}) {
  Ring ring(2, 0);
  RING_OR_SKIP(ring);
  for (std::uint64_t i = 0; i < 6; ++i) {
    ring.prepare(IORING_OP_NOP, -1, i);
    ring.show();
    ASSERT_EQ(Ring::enter(ring.fd(), 1, 0, 0), 1);
  }
  checkpoint_here();
  for (std::uint64_t i = 0; i < 6; ++i) {
    if (ring.waiting() == 0) {
      ASSERT_GE(Ring::enter(ring.fd(), 0, 0, IORING_ENTER_GETEVENTS), 0);
    }
    EXPECT_EQ(ring.fetch()->user_data, i);
  }
}

LIVE_TEST_WITH(IoUring, RefusesAThreadThatSubmits, {.refused = "IORING_SETUP_SQPOLL", .changes = true}) {
  Ring ring(8, IORING_SETUP_SQPOLL);
  RING_OR_SKIP(ring);
  checkpoint_here();
}

LIVE_TEST_WITH(IoUring, RefusesProvidedBuffers, {.refused = "an io_uring with provided buffers"}) {
  Ring ring(8, 0);
  RING_OR_SKIP(ring);
  static char memory[4096];
  io_uring_sqe& provide = ring.prepare(IORING_OP_PROVIDE_BUFFERS, 4, 1);
  provide.addr = reinterpret_cast<std::uint64_t>(memory);
  provide.len = 1024;
  ASSERT_EQ(ring.result_of(1), 0);
  checkpoint_here();
}

LIVE_TEST_WITH(IoUring, RefusesPersonalities, {.refused = "an io_uring with personalities"}) {
  Ring ring(8, 0);
  RING_OR_SKIP(ring);
  ASSERT_GT(ring.register_with(IORING_REGISTER_PERSONALITY, nullptr, 0), 0);
  checkpoint_here();
}

LIVE_TEST_WITH(IoUring, RefusesRestrictions, {.refused = "an io_uring with restrictions"}) {
  Ring ring(8, IORING_SETUP_R_DISABLED);
  RING_OR_SKIP(ring);
  io_uring_restriction only{};
  only.opcode = IORING_RESTRICTION_SQE_OP;
  only.sqe_op = IORING_OP_NOP;
  ASSERT_EQ(ring.register_with(IORING_REGISTER_RESTRICTIONS, &only, 1), 0);
  checkpoint_here();
}

LIVE_TEST_WITH(IoUring, RefusesARegisteredFileWithoutDescriptor, {.refused = "has no descriptor any more"}) {
  Ring ring(8, 0);
  RING_OR_SKIP(ring);
  const int file = ::open("/dev/null", O_RDONLY);
  ASSERT_EQ(ring.register_with(IORING_REGISTER_FILES, &file, 1), 0);
  ASSERT_EQ(::close(file), 0);
  checkpoint_here();
  char byte = 0;
  ring.prepare_transfer(IORING_OP_READ, 0, &byte, 1, 1).flags = IOSQE_FIXED_FILE;
  EXPECT_EQ(ring.result_of(1), 0);
}

LIVE_TEST_WITH(IoUring, RefusesAClosedRing, {.refused = "uses an io_uring that it has no descriptor of"}) {
  Ring ring(8, 0);
  RING_OR_SKIP(ring);
  ASSERT_EQ(::close(ring.fd()), 0);
  checkpoint_here();
}

LIVE_TEST_WITH(IoUring, RefusesAClosedRingBesideOthers, {.refused = "an io_uring whose descriptor is closed"}) {
  Ring ring(8, 0), other(8, 0);
  RING_OR_SKIP(ring);
  ASSERT_EQ(::close(ring.fd()), 0);
  checkpoint_here();
  use(other);
}

LIVE_TEST_WITH(IoUring, RefusesAnUnmappedBuffer, {.refused = "is not in the memory of pid"}) {
  Ring ring(8, 0);
  RING_OR_SKIP(ring);
  void* memory = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const iovec buffer{memory, 4096};
  ASSERT_EQ(ring.register_with(IORING_REGISTER_BUFFERS, &buffer, 1), 0);
  ASSERT_EQ(::munmap(memory, 4096), 0);
  checkpoint_here();
}

LIVE_TEST_WITH(IoUring, RefusesAThreadThatHasEnded, {.refused = "only one thread that may submit, which has ended"}) {
  std::optional<Ring> ring;
  std::thread([&] { ring.emplace(8, IORING_SETUP_SINGLE_ISSUER); }).join();
  RING_OR_SKIP(*ring);
  checkpoint_here();
}

LIVE_TEST_WITH(IoUring, RefusesMessagesToADeferringRing, {.refused = "more completions (1) than submissions (0)"}) {
  Ring ring(8, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN), sender(8, 0);
  RING_OR_SKIP(ring);
  sender.prepare(IORING_OP_MSG_RING, ring.fd(), 2).off = 77;
  ASSERT_EQ(sender.submit(), 1);
  ASSERT_GE(Ring::enter(ring.fd(), 0, 1, IORING_ENTER_GETEVENTS), 0);
  checkpoint_here();
  EXPECT_EQ(ring.fetch()->user_data, 77U);
}

LIVE_TEST_WITH(IoUring, RefusesAnEventfdWithoutDescriptor,
               {.refused = "the eventfd that is registered with the io_uring has no descriptor any more"}) {
  Ring ring(8, 0);
  RING_OR_SKIP(ring);
  const int told = ::eventfd(0, 0);
  ASSERT_EQ(ring.register_with(IORING_REGISTER_EVENTFD, &told, 1), 0);
  ASSERT_EQ(::close(told), 0);
  checkpoint_here();
}

LIVE_TEST_WITH(IoUring, RefusesSetupThatIsNotKnown, {.refused = "an io_uring that was set up with flags 0x40000"}) {
  Ring ring(8, kCqeMixed);
  RING_OR_SKIP(ring);
  checkpoint_here();
}

LIVE_TEST_WITH(IoUring, RefusesMemoryOfTheProgram, {.refused = "memory of the program's own (IORING_SETUP_NO_MMAP)"}) {
  auto* memory = static_cast<char*>(
      ::mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0));
  io_uring_params parameters{};
  parameters.flags = kNoMmap;
  parameters.sq_off.resv2 = reinterpret_cast<std::uint64_t>(memory);  // user_addr in newer headers
  parameters.cq_off.resv2 = reinterpret_cast<std::uint64_t>(memory + 4096);
  if (::syscall(SYS_io_uring_setup, 4, &parameters) < 0) {
    GTEST_SKIP() << "io_uring_setup: " << std::strerror(errno);
  }
  checkpoint_here();
}

LIVE_TEST_WITH(IoUring, RefusesARingWithoutDescriptor, {.refused = "uses an io_uring that it has no descriptor of"}) {
  auto* memory = static_cast<char*>(
      ::mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0));
  io_uring_params parameters{};
  parameters.flags = kNoMmap | kRegisteredFdOnly;
  parameters.sq_off.resv2 = reinterpret_cast<std::uint64_t>(memory);
  parameters.cq_off.resv2 = reinterpret_cast<std::uint64_t>(memory + 4096);
  const auto index = static_cast<int>(::syscall(SYS_io_uring_setup, 4, &parameters));
  if (index < 0) {
    GTEST_SKIP() << "io_uring_setup: " << std::strerror(errno);
  }
  checkpoint_here();
  EXPECT_EQ(Ring::enter(index, 0, 0, IORING_ENTER_GETEVENTS | IORING_ENTER_REGISTERED_RING), 0);
}

LIVE_TEST_WITH(IoUring, RefusesBusyPolling, {.refused = "an io_uring with busy polling of network devices"}) {
  Ring ring(8, 0);
  RING_OR_SKIP(ring);
  std::uint32_t poll[4] = {50};  // struct io_uring_napi: microseconds
  if (ring.register_with(kRegisterNapi, poll, 1) != 0) {
    GTEST_SKIP() << "IORING_REGISTER_NAPI: " << std::strerror(errno);
  }
  checkpoint_here();
}

LIVE_TEST_WITH(IoUring, RefusesAMemoryRegion, {.refused = "an io_uring with a memory region"}) {
  Ring ring(8, 0);
  RING_OR_SKIP(ring);
  void* memory = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  // struct io_uring_region_desc: address, size, flags (IORING_MEM_REGION_TYPE_USER), id.
  const std::uint64_t region[8] = {reinterpret_cast<std::uint64_t>(memory), 4096, 1};
  const std::uint64_t request[4] = {reinterpret_cast<std::uint64_t>(region)};  // struct io_uring_mem_region_reg
  if (ring.register_with(kRegisterMemRegion, request, 1) != 0) {
    GTEST_SKIP() << "IORING_REGISTER_MEM_REGION: " << std::strerror(errno);
  }
  checkpoint_here();
}

// Its positions would take longer to reach than anybody waits.
LIVE_TEST_WITH(IoUring, RefusesARingThatWasUsedVeryOften,
               {.refused = "the io_uring stands at 100000003",
                .pid_namespace = false,
                .leave_running = false,
                .user_namespace = false}) {
  Ring ring(4096, IORING_SETUP_CLAMP);
  RING_OR_SKIP(ring);
  ring.work(100'000'003);
  checkpoint_here();
  use(ring);
}

// What the kernel writes into a registered buffer passes by the page tables, and so by whoever tracks writes.
// (A file of tmpfs is read by a worker, which is listed among the threads.)
LIVE_TEST_WITH(IoUring, WritesIntoARegisteredBufferBetweenTwoLooks, {.changes = true}) {
  Ring ring(8, 0);
  RING_OR_SKIP(ring);
  constexpr std::size_t kSize = 16 * 4096;
  auto* memory = static_cast<char*>(::mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  std::memset(memory, 'a', kSize);
  const iovec buffer{memory, kSize};
  ASSERT_EQ(ring.register_with(IORING_REGISTER_BUFFERS, &buffer, 1), 0) << std::strerror(errno);
  const int file = static_cast<int>(::syscall(SYS_memfd_create, "data", 0));
  const std::string data(kSize, 'b');
  ASSERT_EQ(::pwrite(file, data.data(), kSize, 0), static_cast<ssize_t>(kSize));
  pre_dump_here();
  ring.prepare_transfer(IORING_OP_READ_FIXED, file, memory, kSize, 1).off = 0;
  ASSERT_EQ(ring.result_of(1), static_cast<int>(kSize));
  checkpoint_here();
  EXPECT_EQ(std::count(memory, memory + kSize, 'b'), static_cast<std::ptrdiff_t>(kSize));
}

// A wait that only the stop ended.
LIVE_TEST(IoUring, AWaitForCompletions) {
  Ring ring(8, 0);
  RING_OR_SKIP(ring);
  const int error = checkpoint_while(SYS_io_uring_enter, [&] {
    __kernel_timespec limit{2, 0};
    io_uring_getevents_arg argument{};
    argument.ts = reinterpret_cast<std::uint64_t>(&limit);
    const long out = ::syscall(SYS_io_uring_enter, ring.fd(), 0, 1, IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG,
                               &argument, sizeof argument);
    return out < 0 ? errno : 0;
  });
  EXPECT_EQ(error, ETIME) << std::strerror(error);
}

}  // namespace
}  // namespace ferry::live

// Rings of io_uring_setup(2) that are carried.
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <deque>
#include <optional>
#include <string>
#include <thread>

#include "state/io_uring/live_ring.h"

namespace ferry::live {
namespace {

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

std::int32_t result_by_worker(Ring& ring, std::uint8_t operation, int fd, const char* byte, std::uint64_t mark) {
  ring.prepare_transfer(operation, fd, byte, 1, mark).flags = IOSQE_ASYNC;
  return ring.result_of(mark);
}

// Its workers are listed among the threads of the process, and stay for a while when they have nothing to do.
LIVE_TEST_WITH(IoUring, WithIdleWorkers, {.changes = true}) {
  Ring ring(8, 0);
  RING_OR_SKIP(ring);
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  EXPECT_EQ(result_by_worker(ring, IORING_OP_WRITE, ends[1], "w", 1), 1);
  checkpoint_here();
  char byte = 0;
  EXPECT_EQ(result_by_worker(ring, IORING_OP_READ, ends[0], &byte, 2), 1);
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
  EXPECT_EQ(result_by_worker(ring, IORING_OP_WRITE, ends[1], "w", 1), 1);
  checkpoint_here();
  char byte = 0;
  EXPECT_EQ(result_by_worker(ring, IORING_OP_READ, ends[0], &byte, 2), 1);
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

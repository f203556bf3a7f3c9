// Rings of io_uring_setup(2) that cannot be carried.
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <optional>
#include <thread>

#include "state/io_uring/live_ring.h"

namespace ferry::live {
namespace {

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

}  // namespace
}  // namespace ferry::live

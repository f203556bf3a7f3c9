// For the live tests of this room: a ring as a program uses it.
#pragma once

#include <linux/io_uring.h>
#include <linux/time_types.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>

#include "live/live.h"
#include "state/io_uring/abi.h"

namespace ferry::live {

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
inline void use(Ring& ring) {
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

}  // namespace ferry::live

#include "state/io_uring/advance.h"

#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "sys/file.h"

namespace ferry::state::io_uring {
namespace {

constexpr std::uint32_t kStepsPerBatch = 2'000'000;  // some 0.2 s
constexpr std::uint32_t kCallsPerBatch = 8000;
constexpr std::uint32_t kCallsPerRound = 64;
constexpr std::uint32_t kMessages = 256;  // entries of the ring that sends them

// Every entry is a request that does nothing.
void fill_with_nothing(const Areas& areas, const pb::FerryIoUringEntry& entry, std::uint8_t flags) {
  const std::size_t size = sizeof(io_uring_sqe) * ((entry.setup_flags() & IORING_SETUP_SQE128) != 0 ? 2 : 1);
  for (std::uint32_t i = 0; i < entry.sq_entries(); ++i) {
    io_uring_sqe nothing{};
    nothing.opcode = IORING_OP_NOP;
    nothing.flags = flags;
    std::memcpy(areas.sqes().data() + i * size, &nothing, sizeof nothing);
    if (entry.sq_array() != 0) {
      areas.word(entry.sq_array() + i * 4) = i;
    }
  }
}

// The owner's calls.  It has the head of the completions mapped, so that it can go on with them by itself: a file
// holds what is to be there after each round.
class Submitter {
 public:
  Submitter(const NewRing& ring, const pb::FerryIoUringEntry& entry) : ring_(ring), entry_(entry) {}

  Result<void> begin() {
    heads_.reset(::memfd_create("heads", MFD_CLOEXEC));
    if (!heads_) {
      return sys_fail("memfd_create");
    }
    tracee::Batch batch;
    const auto file =
        batch.must("fetching a file", SYS_pidfd_getfd, {ring_.owner.task->controller_pidfd, heads_.get(), 0});
    const auto at = batch.must("mmap(ring)", SYS_mmap,
                               {0, kMapped, PROT_READ | PROT_WRITE, MAP_SHARED, ring_.fd, IORING_OFF_SQ_RING});
    FERRY_TRY(const auto replies, run(batch));
    file_ = replies[file];
    at_ = static_cast<std::uint64_t>(replies[at]);
    return {};
  }

  Result<void> end() {
    tracee::Batch batch;
    batch.must("munmap(ring)", SYS_munmap, {at_, kMapped});
    batch.must("closing a file", SYS_close, {file_});
    FERRY_CHECK(run(batch));
    return {};
  }

  // Until the kernel has taken everything before `target`.  `completions`: each leaves one.
  Result<void> submit_until(std::uint32_t target, bool completions) {
    const std::uint32_t entries = entry_.sq_entries();
    const std::uint32_t calls =
        completions ? std::clamp(entry_.cq_entries() / entries, std::uint32_t{1}, kCallsPerRound) : kCallsPerRound;
    const std::uint32_t steps = calls * entries;
    const std::uint32_t most = std::max(std::min(kStepsPerBatch / steps, kCallsPerBatch / (calls + 1)), 1U);
    ring_.areas.word(kSqTail) = target;
    while (ring_.areas.word(kSqHead) != target) {
      const std::uint32_t from = ring_.areas.word(kSqHead);
      const std::uint32_t rounds = std::min((target - from - 1) / steps + 1, most);
      std::vector<std::uint32_t> heads;
      for (std::uint32_t i = 1; i <= rounds; ++i) {
        heads.push_back(static_cast<std::uint32_t>(
            std::min(std::uint64_t{from} + std::uint64_t{i} * steps, std::uint64_t{target})));
      }
      if (completions) {
        FERRY_CHECK(write_heads(heads));
      }
      tracee::Batch batch;
      for (std::uint32_t i = 0; i < rounds; ++i) {
        for (std::uint32_t call = 0; call < calls; ++call) {
          batch.must("io_uring_enter", SYS_io_uring_enter, {ring_.fd, entries, 0, 0, 0, 0});
        }
        if (completions) {
          batch.must("fetching completions", SYS_pread64, {file_, at_ + kCqHead, sizeof heads[0], i * sizeof heads[0]});
        }
      }
      FERRY_CHECK(run(batch));
      if (ring_.areas.word(kSqHead) == from) {
        return fail(Kind::unsupported, "the kernel takes no requests from the new ring");
      }
    }
    return {};
  }

 private:
  static constexpr std::size_t kMapped = 4096;
  Result<void> write_heads(const std::vector<std::uint32_t>& heads) {
    if (::lseek(heads_.get(), 0, SEEK_SET) != 0) {
      return sys_fail("lseek(heads)");
    }
    return sys::write_all(heads_.get(), heads.data(), heads.size() * sizeof heads[0], "heads");
  }
  Result<tracee::Replies> run(const tracee::Batch& batch) {
    return ring_.owner.task->process.run(*ring_.owner.thread, batch);
  }

  const NewRing& ring_;
  const pb::FerryIoUringEntry& entry_;
  UniqueFd heads_;
  std::int64_t file_ = -1;  // in the owner
  std::uint64_t at_ = 0;    // in the owner
};

// Completions without submissions: messages of a ring of ours (IORING_OP_MSG_RING, since Linux 5.18).
Result<void> send_completions(const NewRing& ring, std::uint32_t cq_entries, std::uint32_t target) {
  io_uring_params parameters{};
  const UniqueFd sender(static_cast<int>(::syscall(SYS_io_uring_setup, kMessages, &parameters)));
  if (!sender) {
    return sys_fail("io_uring_setup");
  }
  const std::uint64_t size = parameters.sq_off.array + kMessages * sizeof(std::uint32_t);
  FERRY_TRY(const Areas areas,
            Areas::map(sender.get(), size, kMessages * sizeof(io_uring_sqe), PROT_READ | PROT_WRITE));
  for (std::uint32_t i = 0; i < kMessages; ++i) {
    io_uring_sqe message{};
    message.opcode = IORING_OP_MSG_RING;
    message.flags = IOSQE_CQE_SKIP_SUCCESS;
    message.fd = ring.ours;
    std::memcpy(areas.sqes().data() + i * sizeof message, &message, sizeof message);
    areas.word(parameters.sq_off.array + i * 4) = i;
  }
  while (ring.areas.word(kCqTail) != target) {
    const std::uint32_t now = std::min({target - ring.areas.word(kCqTail), kMessages, cq_entries});
    areas.word(parameters.sq_off.tail) = areas.word(parameters.sq_off.tail) + now;
    const long sent = ::syscall(SYS_io_uring_enter, sender.get(), now, 0, 0, nullptr, 0);
    if (sent != now) {
      return sys_fail("io_uring_enter");
    }
    if (areas.word(parameters.cq_off.tail) != 0) {
      return fail(Kind::unsupported, "the new ring takes no messages");
    }
    ring.areas.word(kCqHead) = ring.areas.word(kCqTail);
  }
  return {};
}

}  // namespace

Result<void> advance(const NewRing& ring, const pb::FerryIoUringEntry& entry) {
  const std::uint32_t both = std::min(entry.sq_head(), entry.cq_tail());
  Submitter submitter(ring, entry);
  FERRY_CHECK(submitter.begin());
  fill_with_nothing(ring.areas, entry, 0);
  FERRY_CHECK(submitter.submit_until(both, true));
  fill_with_nothing(ring.areas, entry, IOSQE_CQE_SKIP_SUCCESS);
  FERRY_CHECK(submitter.submit_until(entry.sq_head(), false));
  FERRY_CHECK(submitter.end());
  FERRY_CHECK(send_completions(ring, entry.cq_entries(), entry.cq_tail()));
  if (ring.areas.word(kSqHead) != entry.sq_head() || ring.areas.word(kCqTail) != entry.cq_tail()) {
    return fail(Kind::os, "the new ring stands at {} and {}", ring.areas.word(kSqHead), ring.areas.word(kCqTail));
  }
  return {};
}

}  // namespace ferry::state::io_uring

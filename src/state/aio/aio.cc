#include "state/aio/aio.h"

#include <fcntl.h>
#include <linux/aio_abi.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cstddef>
#include <span>

#include "sys/file.h"
#include "sys/memory.h"

namespace ferry::state::aio {
namespace {

// The head of a ring as the kernel shows it to programs (struct aio_ring in fs/aio.c); events follow it.
struct Head {
  std::uint32_t id, slots, head, tail;
  std::uint32_t magic, compatible, incompatible, length;
};
static_assert(sizeof(Head) == 32 && sizeof(io_event) == 32);
constexpr std::uint32_t kMagic = 0xa10a10a1;

std::string subject_of(HostPid pid, std::uint64_t at) {
  return fmt::format("ring of asynchronous I/O {:x} of pid {}", at, pid);
}

}  // namespace

bool is_ring(const sys::Mapping& mapping) { return mapping.name == "/[aio]"; }

Result<void> collect(DumpTask& task, const sys::Mapping& mapping) {
  const std::string subject = subject_of(task.pid, mapping.start);
  FERRY_TRY(const Head head,
            sys::read_object<Head>(task.pid, mapping.start, task.process.memory()).during("{}", subject));
  const std::uint64_t room = (mapping.size() - sizeof(Head)) / sizeof(io_event);
  if (head.magic != kMagic || head.length != sizeof(Head) || head.slots < 4 || head.slots > room ||
      head.head >= head.slots || head.tail >= head.slots) {
    return fail(Kind::unsupported, "{}: its head is not one that ferry knows", subject);
  }
  pb::AioRingEntry& entry = *task.mm->add_aios();
  entry.set_id(mapping.start);
  // io_setup(2) gets half of what the ring holds (ioctx_alloc in fs/aio.c doubles it and adds two).
  entry.set_nr_req((head.slots - 2) / 2);
  entry.set_ring_len(static_cast<std::uint32_t>(mapping.size()));
  const std::uint32_t waiting = (head.tail + head.slots - head.head) % head.slots;
  std::vector<io_event> events(waiting);
  for (std::uint32_t i = 0; i < waiting; ++i) {
    const std::uint64_t at = mapping.start + sizeof(Head) + (head.head + i) % head.slots * sizeof(io_event);
    FERRY_TRY(events[i], sys::read_object<io_event>(task.pid, at, task.process.memory()).during("{}", subject));
  }
  entry.set_ferry_events(events.data(), events.size() * sizeof(io_event));
  return {};
}

namespace {

// The kernel's own count of completions goes up with completions only, so each event that waits is one of
// a request to /dev/null; then it gets what the image has.
Result<void> refill(RestoreTask& task, const pb::AioRingEntry& entry) {
  const std::string& events = entry.ferry_events();
  const std::size_t count = events.size() / sizeof(io_event);
  if (count == 0) {
    return {};
  }
  FERRY_TRY(const UniqueFd null, sys::open("/dev/null", O_RDONLY));
  tracee::Batch batch;
  const auto fd = batch.must("fetching a file", SYS_pidfd_getfd, {task.controller_pidfd, null.get(), 0});
  iocb request{};
  request.aio_lio_opcode = IOCB_CMD_PREAD;
  const auto block = batch.object(request);
  const auto list = batch.room(sizeof(std::uint64_t));
  batch.point(list, 0, block);
  // Eight bytes from the result on: aio_fildes and aio_buf's lower half, which a read of nothing does not use.
  batch.store(fd, block, offsetof(iocb, aio_fildes));
  for (std::size_t i = 0; i < count; ++i) {
    batch.must("io_submit", SYS_io_submit, {entry.id(), 1, list});
  }
  batch.must("closing a file", SYS_close, {fd});
  FERRY_CHECK(task.process.run(task.leader(), batch));
  return sys::write_memory(task.pid, entry.id() + sizeof(Head), std::as_bytes(std::span(events.data(), events.size())),
                           task.process.memory());
}

Result<void> restore(RestoreTask& task, const pb::AioRingEntry& entry) {
  tracee::Batch make;
  const auto room = make.room(sizeof(aio_context_t));
  make.must("io_setup", SYS_io_setup, {entry.nr_req(), room});
  FERRY_TRY(const auto replies, task.process.run(task.leader(), make));
  const auto at = replies.object<aio_context_t>(room);
  FERRY_TRY(const Head head, sys::read_object<Head>(task.pid, at, task.process.memory()));
  const std::uint64_t least = sizeof(Head) + head.slots * sizeof(io_event);
  if ((least + 4095) / 4096 * 4096 != entry.ring_len()) {
    return fail(Kind::unsupported, "this kernel makes a ring of {} bytes for {} requests, and the program had {}",
                least, entry.nr_req(), entry.ring_len());
  }
  tracee::Batch move;
  move.must("mremap(ring)", SYS_mremap,
            {at, entry.ring_len(), entry.ring_len(), MREMAP_MAYMOVE | MREMAP_FIXED, entry.id()});
  FERRY_CHECK(task.process.run(task.leader(), move));
  return refill(task, entry);
}

}  // namespace

Result<void> restore(RestoreTask& task) {
  for (const pb::AioRingEntry& entry : task.mm->aios()) {
    FERRY_CHECK(restore(task, entry).during("{}", subject_of(task.pid, entry.id())));
  }
  return {};
}

}  // namespace ferry::state::aio

#include "state/io_uring/make.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <span>
#include <vector>

#include "state/file_kind.h"
#include "state/io_uring/abi.h"
#include "state/io_uring/advance.h"
#include "state/io_uring/areas.h"
#include "sys/file.h"

namespace ferry::state::io_uring {
namespace {

constexpr std::uint32_t kMostSlots = 1 << 20;  // IORING_MAX_FIXED_FILES in io_uring/rsrc.c

Result<Owner> owner_of(const pb::FerryIoUringEntry& entry, RestoreContext& context, std::int32_t pid,
                       std::int32_t tid) {
  RestoreTask* const task = context.find(NsPid(pid));
  for (RestoreThread& thread : task == nullptr || task->mm == nullptr ? std::vector<RestoreThread>() : task->threads) {
    if (thread.ns_tid.value == tid) {
      return Owner{task, &task->process.threads().at(thread.index)};
    }
  }
  return fail(Kind::corrupt, "io_uring {} belongs to thread {} of pid {}, which is not in the set", entry.id(), tid,
              pid);
}

// Where the program expects to find what, which the kernel has told it once.
Result<void> check_layout(const pb::FerryIoUringEntry& entry, const io_uring_params& made) {
  const std::uint32_t array = (made.flags & kNoSqArray) != 0 ? 0 : made.sq_off.array;
  if (made.sq_entries != entry.sq_entries() || made.cq_entries != entry.cq_entries() || array != entry.sq_array() ||
      made.cq_off.cqes != kRingsHead || made.sq_off.head != kSqHead || made.sq_off.tail != kSqTail ||
      made.cq_off.head != kCqHead || made.cq_off.tail != kCqTail) {
    return fail(Kind::unsupported,
                "this kernel lays out an io_uring of {} and {} entries otherwise than the one that it comes from",
                entry.sq_entries(), entry.cq_entries());
  }
  return {};
}

Result<void> check_entry(const pb::FerryIoUringEntry& entry) {
  const bool wide_cqe = (entry.setup_flags() & IORING_SETUP_CQE32) != 0;
  const bool wide_sqe = (entry.setup_flags() & IORING_SETUP_SQE128) != 0;
  const std::uint64_t rings =
      std::max(kRingsHead + std::uint64_t{entry.cq_entries()} * sizeof(io_uring_cqe) * (wide_cqe ? 2 : 1),
               std::uint64_t{entry.sq_array()} + (entry.sq_array() != 0 ? std::uint64_t{entry.sq_entries()} * 4 : 0));
  const std::uint64_t sqes = std::uint64_t{entry.sq_entries()} * sizeof(io_uring_sqe) * (wide_sqe ? 2 : 1);
  if (entry.sq_entries() == 0 || entry.rings().size() < rings || entry.sqes().size() < sqes ||
      entry.file_slots() > kMostSlots || entry.buffer_slots() > kMostSlots) {
    return fail(Kind::corrupt, "io_uring {} has {} and {} entries, and {} and {} bytes of memory", entry.id(),
                entry.sq_entries(), entry.cq_entries(), entry.rings().size(), entry.sqes().size());
  }
  if (std::max(entry.sq_head(), entry.cq_tail()) > kMostSteps) {
    return fail(Kind::unsupported, "io_uring {} stands at {}, and more than {} would take too long to reach",
                entry.id(), std::max(entry.sq_head(), entry.cq_tail()), kMostSteps);
  }
  return {};
}

// Files or buffers, slot by slot.
template <class T>
void add_register(tracee::Batch& batch, const char* what, std::int64_t fd, unsigned operation,
                  const std::vector<T>& slots, const std::vector<std::uint64_t>& tags) {
  io_uring_rsrc_register wanted{};
  wanted.nr = static_cast<std::uint32_t>(slots.size());
  const auto request = batch.object(wanted);
  batch.point(request, offsetof(io_uring_rsrc_register, data), batch.bytes(std::as_bytes(std::span(slots))));
  batch.point(request, offsetof(io_uring_rsrc_register, tags), batch.bytes(std::as_bytes(std::span(tags))));
  batch.must(what, SYS_io_uring_register, {fd, operation, request, sizeof wanted});
}

class Maker {
 public:
  Maker(const pb::FerryIoUringEntry& entry, RestoreContext& context, Owner owner)
      : entry_(entry), context_(context), owner_(owner) {}

  Result<UniqueFd> run() {
    FERRY_CHECK(set_up());
    FERRY_TRY(const Areas areas,
              Areas::map(ours_.get(), entry_.rings().size(), entry_.sqes().size(), PROT_READ | PROT_WRITE));
    if ((entry_.setup_flags() & IORING_SETUP_R_DISABLED) == 0) {
      FERRY_CHECK(advance({ours_.get(), fd_, owner_, areas}, entry_)
                      .during("bringing its positions to {} and {}", entry_.sq_head(), entry_.cq_tail()));
    }
    std::memcpy(areas.sqes().data(), entry_.sqes().data(), areas.sqes().size());
    std::memcpy(areas.rings().data(), entry_.rings().data(), areas.rings().size());
    FERRY_CHECK(register_all());
    return std::move(ours_);
  }

 private:
  Result<void> set_up() {
    tracee::Batch batch;
    io_uring_params wanted{};
    // Of rings without a polling thread, to attach is no more than a check of the descriptor (io_uring_create).
    wanted.flags = (entry_.setup_flags() & ~std::uint32_t{IORING_SETUP_ATTACH_WQ}) | IORING_SETUP_CQSIZE;
    wanted.cq_entries = entry_.cq_entries();
    const auto parameters = batch.object(wanted);
    const auto made = batch.must("io_uring_setup", SYS_io_uring_setup, {entry_.sq_entries(), parameters});
    FERRY_TRY(const auto replies, owner_.task->process.run(*owner_.thread, batch));
    fd_ = static_cast<int>(replies[made]);
    FERRY_CHECK(check_layout(entry_, replies.object<io_uring_params>(parameters)));
    const UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, owner_.task->pid.value, 0)));
    if (!pidfd) {
      return sys_fail(fmt::format("pidfd_open({})", owner_.task->pid));
    }
    ours_.reset(static_cast<int>(::syscall(SYS_pidfd_getfd, pidfd.get(), fd_, 0)));
    if (!ours_) {
      return sys_fail(fmt::format("pidfd_getfd(pid {}, fd {})", owner_.task->pid, fd_));
    }
    return {};
  }

  // Everything that is registered with it, and the end of the owner's own descriptor: its table is made later.
  Result<void> register_all() {
    FERRY_CHECK(fetch_files());
    tracee::Batch batch;
    FERRY_CHECK(register_files(batch));
    if (entry_.has_event_id()) {
      const std::int32_t event = fetched_.at(entry_.event_id());
      batch.must("io_uring_register(eventfd)", SYS_io_uring_register,
                 {fd_, entry_.event_async() ? IORING_REGISTER_EVENTFD_ASYNC : IORING_REGISTER_EVENTFD,
                  batch.object(event), 1});
    }
    if (entry_.has_clock()) {
      const std::array<std::uint32_t, 4> clock{entry_.clock()};  // struct io_uring_clock_register
      batch.must("io_uring_register(clock)", SYS_io_uring_register, {fd_, kRegisterClock, batch.object(clock), 0});
    }
    if (entry_.worker_limits_size() == 2) {
      const std::array<std::uint32_t, 2> limits{entry_.worker_limits(0), entry_.worker_limits(1)};
      batch.must("io_uring_register(limits of workers)", SYS_io_uring_register,
                 {fd_, IORING_REGISTER_IOWQ_MAX_WORKERS, batch.object(limits), 2});
    }
    for (const auto& [id, number] : fetched_) {
      batch.must("closing a registered file", SYS_close, {number});
    }
    batch.must("closing the ring", SYS_close, {fd_});
    FERRY_CHECK(owner_.task->process.run(*owner_.thread, batch));
    return {};
  }

  // Into the owner, for the moment.
  Result<void> fetch_files() {
    tracee::Batch batch;
    std::map<std::uint32_t, tracee::Value> fetching;
    const auto fetch = [&](std::uint32_t id) -> Result<void> {
      if (!fetching.contains(id)) {
        FERRY_TRY(const int file, context_.files.get(id));
        fetching.emplace(
            id, batch.must("fetching a registered file", SYS_pidfd_getfd, {owner_.task->controller_pidfd, file, 0}));
      }
      return {};
    };
    for (const pb::FerryIoUringFile& file : entry_.files()) {
      FERRY_CHECK(fetch(file.file_id()).during("registered file {}", file.slot()));
    }
    if (entry_.has_event_id()) {
      FERRY_CHECK(fetch(entry_.event_id()).during("the registered eventfd"));
    }
    if (fetching.empty()) {
      return {};
    }
    FERRY_TRY(const auto replies, owner_.task->process.run(*owner_.thread, batch));
    for (const auto& [id, value] : fetching) {
      fetched_[id] = static_cast<std::int32_t>(replies[value]);
    }
    return {};
  }

  Result<void> register_files(tracee::Batch& batch) {
    if (entry_.file_slots() == 0) {
      return {};
    }
    std::vector<std::int32_t> numbers(entry_.file_slots(), -1);
    std::vector<std::uint64_t> tags(entry_.file_slots(), 0);
    for (const pb::FerryIoUringFile& file : entry_.files()) {
      if (file.slot() >= entry_.file_slots()) {
        return fail(Kind::corrupt, "file {} is registered in one of {} slots", file.slot(), entry_.file_slots());
      }
      numbers[file.slot()] = fetched_.at(file.file_id());
      tags[file.slot()] = file.tag();
    }
    add_register(batch, "io_uring_register(files)", fd_, IORING_REGISTER_FILES2, numbers, tags);
    if (entry_.file_alloc_start() != 0 || entry_.file_alloc_end() != entry_.file_slots()) {
      io_uring_file_index_range range{};
      range.off = entry_.file_alloc_start();
      range.len = entry_.file_alloc_end() - entry_.file_alloc_start();
      batch.must("io_uring_register(range of files)", SYS_io_uring_register,
                 {fd_, IORING_REGISTER_FILE_ALLOC_RANGE, batch.object(range), 0});
    }
    return {};
  }

  const pb::FerryIoUringEntry& entry_;
  RestoreContext& context_;
  Owner owner_;
  int fd_ = -1;  // in the owner
  UniqueFd ours_;
  std::map<std::uint32_t, std::int32_t> fetched_;  // by file id, in the owner
};

}  // namespace

Result<UniqueFd> make(const pb::FerryIoUringEntry& entry, RestoreContext& context) {
  FERRY_CHECK(check_entry(entry));
  FERRY_TRY(const Owner owner, owner_of(entry, context, entry.pid(), entry.tid()));
  return Maker(entry, context, owner).run();
}

Result<void> register_buffers(const pb::FerryIoUringEntry& entry, RestoreContext& context) {
  if (entry.buffer_slots() == 0) {
    return {};
  }
  std::vector<iovec> buffers(entry.buffer_slots());
  std::vector<std::uint64_t> tags(entry.buffer_slots(), 0);
  for (const pb::FerryIoUringBuffer& buffer : entry.buffers()) {
    if (buffer.slot() >= entry.buffer_slots()) {
      return fail(Kind::corrupt, "buffer {} is registered in one of {} slots", buffer.slot(), entry.buffer_slots());
    }
    buffers[buffer.slot()] = {reinterpret_cast<void*>(buffer.address()), buffer.size()};
    tags[buffer.slot()] = buffer.tag();
  }
  FERRY_TRY(const Owner owner, owner_of(entry, context, entry.pid(), entry.tid()));
  tracee::Batch batch;
  add_register(batch, "io_uring_register(buffers)", entry.fd(), IORING_REGISTER_BUFFERS2, buffers, tags);
  FERRY_CHECK(owner.task->process.run(*owner.thread, batch));
  return {};
}

Result<void> register_indices(const pb::FerryIoUringEntry& entry, RestoreContext& context) {
  for (const pb::FerryIoUringIndex& index : entry.indices()) {
    FERRY_TRY(const Owner owner, owner_of(entry, context, index.pid(), index.tid()));
    io_uring_rsrc_update wanted{};
    wanted.offset = index.index();
    wanted.data = index.fd();
    tracee::Batch batch;
    batch.must("io_uring_register(descriptor of the ring)", SYS_io_uring_register,
               {index.fd(), IORING_REGISTER_RING_FDS, batch.object(wanted), 1});
    FERRY_CHECK(owner.task->process.run(*owner.thread, batch));
  }
  return {};
}

}  // namespace ferry::state::io_uring

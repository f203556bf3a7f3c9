#include "state/memory/segments.h"

#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/syscall.h>

#include <algorithm>

#include "state/memory/memory.h"
#include "state/nested/nested.h"
#include "state/nsids/nsids.h"

namespace ferry::state::memory {
namespace {

constexpr std::uint64_t kPage = 4096;

int mode_of(const pb::VmaEntry& vma) {
  return ((vma.prot() & PROT_WRITE) == 0 ? SHM_RDONLY : 0) | ((vma.prot() & PROT_EXEC) != 0 ? SHM_EXEC : 0);
}

}  // namespace

Result<std::uint64_t> Segments::size_of(std::uint64_t id) {
  FERRY_TRY(Inside* const inside, context_.nested.inside(context_, NsKind::ipc, namespace_of(*task_.ids, NsKind::ipc)));
  return inside->get<std::uint64_t>([&]() -> Result<std::uint64_t> {
    shmid_ds info{};
    if (::shmctl(static_cast<int>(id), IPC_STAT, &info) != 0) {
      return sys_fail(fmt::format("shmctl({}, IPC_STAT)", id));
    }
    return (info.shm_segsz + kPage - 1) / kPage * kPage;
  });
}

Result<void> Segments::add(const pb::VmaEntry& vma, tracee::Batch& batch) {
  if (vma.pgoff() > vma.start()) {
    return fail(Kind::corrupt, "mapping {:x} of pid {} begins {:#x} bytes into its segment", vma.start(),
                task_.ns_pid(), vma.pgoff());
  }
  const Attachment attachment{vma.shmid(), vma.start() - vma.pgoff()};
  if (std::find(made_.begin(), made_.end(), attachment) == made_.end()) {
    FERRY_CHECK(attach(attachment, vma, batch)
                    .during("attachment {:x} of segment {} in pid {}", attachment.base, attachment.id, task_.ns_pid()));
    made_.push_back(attachment);
  } else {
    batch.must("mprotect", SYS_mprotect, {vma.start(), vma.end() - vma.start(), vma.prot()});
  }
  return {};
}

Result<void> Segments::attach(const Attachment& attachment, const pb::VmaEntry& first, tracee::Batch& batch) {
  FERRY_TRY(const std::uint64_t size, size_of(attachment.id));
  const std::uint64_t end = attachment.base + size;
  std::vector<const pb::VmaEntry*> pieces;
  bool writable = false;
  for (const pb::VmaEntry& other : task_.mm->vmas()) {
    const bool inside = other.start() < end && other.end() > attachment.base && (other.status() & kGuard) == 0;
    if (!inside) {
      continue;
    }
    const bool ours = (other.status() & kSysvIpc) != 0 && other.shmid() == attachment.id &&
                      other.start() - other.pgoff() == attachment.base;
    if (ours) {
      pieces.push_back(&other);
      writable |= (other.prot() & PROT_WRITE) != 0;
    } else if (other.start() < first.start()) {
      return fail(Kind::unsupported, "another mapping ({:x}-{:x}) is where its beginning was", other.start(),
                  other.end());
    }
  }
  // Made writable if a piece is: mprotect(2) takes that away, and cannot give it to an attachment without it.
  const int mode = writable ? mode_of(first) & ~SHM_RDONLY : mode_of(first);
  batch.must("shmat", SYS_shmat, {attachment.id, attachment.base, mode});
  if (writable && (first.prot() & PROT_WRITE) == 0) {
    batch.must("mprotect", SYS_mprotect, {first.start(), first.end() - first.start(), first.prot()});
  }
  std::uint64_t at = attachment.base;
  for (const pb::VmaEntry* piece : pieces) {
    if (piece->start() > at) {
      batch.must("munmap", SYS_munmap, {at, piece->start() - at});
    }
    at = piece->end();
  }
  if (at < end) {
    batch.must("munmap", SYS_munmap, {at, end - at});
  }
  return {};
}

}  // namespace ferry::state::memory

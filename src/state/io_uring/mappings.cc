// The mappings of rings, where the program had them.
//
// The kernel alone chooses where a ring appears: mmap(2) and mremap(2) refuse any address for it
// (io_uring_get_unmapped_area in io_uring/memmap.c).  So all of the address space is taken for a moment but the one
// place where it has to be.
#include <sys/mman.h>
#include <sys/syscall.h>

#include "state/io_uring/io_uring.h"
#include "state/memory/memory.h"
#include "state/memory/pages.h"
#include "state/memory/room.h"
#include "sys/file.h"

namespace ferry::state::io_uring {
namespace {

// What of the address space nobody has.
Result<std::vector<sys::PageRange>> free_ranges(HostPid pid) {
  FERRY_TRY(const std::string text, sys::read_file(fmt::format("/proc/{}/maps", pid)));
  FERRY_TRY(const auto mappings, sys::parse_maps(text));
  FERRY_TRY(const std::string lowest, sys::read_file("/proc/sys/vm/mmap_min_addr"));
  const auto begin = sys::parse_number(std::string_view(lowest).substr(0, lowest.find('\n')));
  if (!begin.has_value()) {
    return fail(Kind::corrupt, "vm.mmap_min_addr is \"{}\"", lowest);
  }
  std::vector<sys::PageRange> taken;
  for (const sys::Mapping& m : mappings) {
    taken.push_back({m.start, m.end});
  }
  return memory::without({{*begin, memory::kUserEnd}}, taken);
}

}  // namespace

bool is_ring(const pb::VmaEntry& vma, const OpenFiles& files) {
  if ((vma.status() & memory::kFileShared) == 0) {
    return false;
  }
  const pb::FileEntry* const file = files.entry(static_cast<std::uint32_t>(vma.shmid()));
  return file != nullptr && file->type() == pb::FD_FERRY_IO_URING;
}

Result<void> restore_mappings(RestoreTask& task, RestoreContext& context) {
  std::vector<const pb::VmaEntry*> rings;
  std::vector<sys::PageRange> places;
  for (const pb::VmaEntry& vma : task.mm->vmas()) {
    if (is_ring(vma, context.files)) {
      rings.push_back(&vma);
      places.push_back({vma.start(), vma.end()});
    }
  }
  if (rings.empty()) {
    return {};
  }
  FERRY_TRY(const auto free, free_ranges(task.pid));
  if (const auto taken = memory::without(places, free); !taken.empty()) {
    return fail(Kind::corrupt, "the place of an io_uring, {:x}-{:x}, is taken", taken.front().start, taken.front().end);
  }
  tracee::Batch batch;
  for (const sys::PageRange& range : free) {
    batch.must("mmap(reservation)", SYS_mmap,
               {range.start, range.end - range.start, PROT_NONE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0});
  }
  std::vector<tracee::Value> mapped;
  for (const pb::VmaEntry* vma : rings) {
    FERRY_TRY(const int ours, context.files.get(static_cast<std::uint32_t>(vma->shmid())));
    const std::uint64_t size = vma->end() - vma->start();
    const auto fd = batch.must("fetching a ring", SYS_pidfd_getfd, {task.controller_pidfd, ours, 0});
    batch.must("munmap(reservation)", SYS_munmap, {vma->start(), size});
    mapped.push_back(batch.must("mmap(ring)", SYS_mmap, {0, size, vma->prot(), MAP_SHARED, fd, vma->pgoff()}));
    batch.must("closing a ring", SYS_close, {fd});
  }
  for (const sys::PageRange& range : memory::without(free, places)) {
    batch.must("munmap(reservation)", SYS_munmap, {range.start, range.end - range.start});
  }
  FERRY_TRY(const auto replies, task.process.run(task.leader(), batch));
  tracee::Batch advice;
  for (std::size_t i = 0; i < rings.size(); ++i) {
    if (const auto at = static_cast<std::uint64_t>(replies[mapped[i]]); at != rings[i]->start()) {
      return fail(Kind::unsupported, "the kernel puts an io_uring at {:x}, and the program had it at {:x}", at,
                  rings[i]->start());
    }
    memory::add_advice(*rings[i], advice);
  }
  if (!advice.empty()) {
    FERRY_CHECK(task.process.run(task.leader(), advice));
  }
  return {};
}

}  // namespace ferry::state::io_uring

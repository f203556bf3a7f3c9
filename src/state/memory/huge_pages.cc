#include "state/memory/huge_pages.h"

#include <sys/mman.h>

#include <charconv>
#include <string>

#include "image/proto/file_kinds.pb.h"
#include "image/proto/ipc.pb.h"
#include "state/memory/memory.h"
#include "sys/file.h"

namespace ferry::state::memory {
namespace {

// Of the flags of mmap(2), memfd_create(2) and shmget(2) alike.
constexpr unsigned kSizeShift = 26;
constexpr std::uint32_t kSizeMask = 63;
constexpr unsigned kUsualSize = 21;  // 2 MiB

std::uint64_t size_in(std::uint32_t flags) {
  const std::uint32_t log = flags >> kSizeShift & kSizeMask;
  return std::uint64_t{1} << (log == 0 ? kUsualSize : log);
}

// Documentation/admin-guide/mm/hugetlbpage.rst; 0 for a size that the host does not have.
std::uint64_t number_of(std::uint64_t size, const char* what) {
  const auto text = sys::read_file(fmt::format("/sys/kernel/mm/hugepages/hugepages-{}kB/{}", size >> 10, what));
  std::uint64_t out = 0;
  if (text.has_value()) {
    (void)std::from_chars(text->data(), text->data() + text->size(), out);
  }
  return out;
}

// What is free and promised to nobody, and what the kernel may still make of ordinary memory.
std::uint64_t to_be_had(std::uint64_t size) {
  const std::uint64_t free = number_of(size, "free_hugepages");
  const std::uint64_t promised = number_of(size, "resv_hugepages");
  const std::uint64_t more = number_of(size, "nr_overcommit_hugepages");
  const std::uint64_t made = number_of(size, "surplus_hugepages");
  return (free > promised ? free - promised : 0) + (more > made ? more - made : 0);
}

}  // namespace

std::map<std::uint64_t, std::uint64_t> huge_pages_of(const RestoreContext& context) {
  std::map<std::uint64_t, std::uint64_t> out;
  const auto add = [&out](std::uint32_t flags, std::uint64_t bytes) {
    const std::uint64_t size = size_in(flags);
    out[size] += (bytes + size - 1) / size;
  };
  for (const auto& task : context.tasks) {
    if (task->mm == nullptr) {
      continue;
    }
    for (const pb::VmaEntry& vma : task->mm->vmas()) {
      const std::uint32_t flags = vma.flags();
      if ((vma.status() & kAnonPrivate) != 0 && (flags & MAP_HUGETLB) != 0 && (flags & MAP_NORESERVE) == 0) {
        add(flags, vma.end() - vma.start());
      }
    }
  }
  for (const auto* inode : context.set.list<pb::MemfdInodeEntry>({image::Type::memfd})) {
    if (inode->hugetlb_flag() != 0) {
      add(inode->hugetlb_flag(), inode->size());
    }
  }
  for (const image::Name& name : context.set.names(image::Type::ipcns_shm)) {
    for (const auto* segment : context.set.list<pb::IpcShmEntry>(name)) {
      if (segment->hugetlb_flag() != 0) {
        add(segment->hugetlb_flag(), segment->size());
      }
    }
  }
  return out;
}

Result<void> check_huge_pages(const RestoreContext& context) {
  for (const auto& [size, count] : huge_pages_of(context)) {
    if (const std::uint64_t there = to_be_had(size); there < count) {
      return fail(Kind::unsupported,
                  "the tree has mapped {} huge pages of {} KiB, and this host can give {}; set more aside "
                  "(/sys/kernel/mm/hugepages/hugepages-{}kB/nr_hugepages)",
                  count, size >> 10, there, size >> 10);
    }
  }
  return {};
}

}  // namespace ferry::state::memory

// From a stopped process into pages-N.img.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>

#include "state/memory/memory.h"
#include "sys/file.h"
#include "sys/memory.h"
#include "sys/pagemap.h"

namespace ferry::state::memory {
namespace {

constexpr std::size_t kBuffer = 1U << 20;  // stays in the cache between reading and writing
constexpr std::size_t kMaxRanges = 512;    // process_vm_readv(2) takes at most IOV_MAX (1024)

// Gathers scattered ranges into one buffer and writes it when it is full.
class Gather {
 public:
  Gather(DumpTask& task, image::PageSink& writer) : task_(task), writer_(writer), buffer_(kBuffer) {}

  Result<void> add(std::uint64_t start, std::uint64_t end) {
    while (start < end) {
      const std::uint64_t take = std::min<std::uint64_t>(end - start, buffer_.size() - used_);
      remote_.push_back({reinterpret_cast<void*>(start), take});
      used_ += take;
      start += take;
      if (used_ == buffer_.size() || remote_.size() == kMaxRanges) {
        FERRY_CHECK(flush());
      }
    }
    return {};
  }

  Result<void> flush() {
    if (used_ == 0) {
      return {};
    }
    const iovec local{buffer_.data(), used_};
    const ssize_t n = ::process_vm_readv(task_.pid.value, &local, 1, remote_.data(), remote_.size(), 0);
    if (n != static_cast<ssize_t>(used_)) {
      // A range that the program itself may not read (PROT_NONE): range by range, past its protection.
      std::size_t at = 0;
      for (const iovec& range : remote_) {
        FERRY_CHECK(sys::read_memory(task_.pid, reinterpret_cast<std::uint64_t>(range.iov_base),
                                     std::span(buffer_).subspan(at, range.iov_len), task_.process.memory()));
        at += range.iov_len;
      }
    }
    FERRY_CHECK(writer_.append(std::span<const std::byte>(buffer_).first(used_)));
    used_ = 0;
    remote_.clear();
    return {};
  }

 private:
  DumpTask& task_;
  image::PageSink& writer_;
  std::vector<std::byte> buffer_;
  std::vector<iovec> remote_;
  std::size_t used_ = 0;
};

bool may_hold_own_pages(const pb::VmaEntry& vma) {
  return (vma.status() & kRegular) != 0 && (vma.status() & kVvar) == 0 && (vma.flags() & MAP_PRIVATE) != 0;
}

}  // namespace

Result<void> save_pages(DumpTask& task, DumpContext& context, DumpReport& report) {
  FERRY_TRY(const UniqueFd pagemap, sys::open_at(task.proc.get(), "pagemap", O_RDONLY));
  const image::Name name{image::Type::pagemap, static_cast<std::uint64_t>(task.ns_pid.value)};
  FERRY_TRY(const auto writer, context.open_pages(name));
  Gather gather(task, *writer);
  for (const pb::VmaEntry& vma : task.mm->vmas()) {
    if (!may_hold_own_pages(vma)) {
      continue;
    }
    std::vector<sys::PageRange> ranges;
    if ((vma.status() & kVdso) != 0) {
      // Kept whole, so that another kernel's can be told apart on restore.
      ranges.push_back({vma.start(), vma.end()});
    } else {
      FERRY_CHECK(sys::own_pages(pagemap.get(), vma.start(), vma.end(), ranges));
    }
    report.pages_scanned += (vma.end() - vma.start()) / image::kPageSize;
    // CRIU's mark for what a lazy restore may leave for later: private anonymous memory, the vDSO apart.
    if (context.options.skip_memory) {
      continue;
    }
    const std::uint32_t flags = image::kPresent | ((vma.status() & (kAnonPrivate | kVdso)) == kAnonPrivate &&
                                                           (vma.flags() & MAP_LOCKED) == 0
                                                       ? std::uint32_t{image::kLazy}
                                                       : 0U);
    for (const sys::PageRange& range : ranges) {
      writer->describe(range.start, range.pages(), flags);
      FERRY_CHECK(gather.add(range.start, range.end));
      report.pages_written += range.pages();
    }
  }
  FERRY_CHECK(gather.flush());
  return writer->finish();
}

}  // namespace ferry::state::memory

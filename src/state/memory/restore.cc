#include <fcntl.h>
#include <linux/prctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <thread>
#include <utility>

#include "state/io_uring/io_uring.h"
#include "state/memory/memory.h"
#include "state/memory/pages.h"
#include "state/memory/room.h"
#include "state/memory/segments.h"
#include "state/vdso/vdso.h"
#include "sys/file.h"
#include "sys/memory.h"

namespace ferry::state::memory {
namespace {

constexpr std::uint64_t kPage = 4096;
constexpr std::uint32_t kDroppable = 8;             // MAP_DROPPABLE, Linux 6.11
constexpr long kMseal = 462;                        // mseal(2), Linux 6.10
constexpr int kInstallGuard = 102;                  // MADV_GUARD_INSTALL, Linux 6.13; older headers lack it
constexpr std::uint64_t kWorthAThread = 16U << 20;  // bytes
constexpr std::size_t kChunk = 16U << 20;           // of a pages file mapped at a time

struct Range {
  std::uint64_t start, end;
};

bool is_mapped_anew(const pb::VmaEntry& vma) {
  return (vma.status() & (kVdso | kVvar | kVsyscall | kGuard | kAioRing | kUprobes)) == 0;
}

Range vdso_of(const pb::MmEntry& mm) {
  for (const pb::VmaEntry& vma : mm.vmas()) {
    if ((vma.status() & kVdso) != 0) {
      return {vma.start(), vma.end()};
    }
  }
  return {0, 0};
}

std::uint64_t end_of(const image::Extent& e) { return e.vaddr + e.page_count * image::kPageSize; }

// Pages that the extents have within the range, zeros where they have none.
Result<std::vector<std::byte>> content_of(const Range& range, const std::vector<image::Extent>& extents) {
  std::vector<std::byte> out(range.end - range.start);
  for (const image::Extent& e : extents) {
    const Range part{std::max(range.start, e.vaddr), std::min(range.end, end_of(e))};
    if (part.start >= part.end || e.fd < 0) {
      continue;
    }
    FERRY_CHECK(sys::pread_exactly(e.fd, out.data() + (part.start - range.start), part.end - part.start,
                                   e.offset + (part.start - e.vaddr), "a pages file"));
  }
  return out;
}

Result<void> check(const pb::MmEntry& mm) {
  std::uint64_t last = 0;
  for (const pb::VmaEntry& vma : mm.vmas()) {
    if ((vma.status() & kGuard) != 0) {
      if (vma.start() % kPage != 0 || vma.end() % kPage != 0 || vma.start() >= vma.end() || vma.end() > kUserEnd) {
        return fail(Kind::corrupt, "guard pages {:x}-{:x} are no range of pages", vma.start(), vma.end());
      }
      continue;
    }
    if ((vma.status() & kVsyscall) != 0) {
      continue;
    }
    if (vma.start() % kPage != 0 || vma.end() % kPage != 0 || vma.start() >= vma.end() || vma.start() < last ||
        vma.end() > kUserEnd + kPage) {
      return fail(Kind::corrupt, "mapping {:x}-{:x} is out of order or out of range", vma.start(), vma.end());
    }
    last = vma.end();
  }
  return {};
}

// The description that a file mapping maps; an inherited or restored file of files.img.
Result<int> file_of(const pb::VmaEntry& vma, RestoreContext& context) {
  if (vma.shmid() > 0xffffffff) {
    return fail(Kind::corrupt, "mapping {:x} names file {}", vma.start(), vma.shmid());
  }
  return context.files.get(static_cast<std::uint32_t>(vma.shmid()));
}

Result<void> move_kernel_mappings(const pb::MmEntry& mm, KernelMappings& kernel, std::uint64_t park,
                                  tracee::Batch& batch) {
  std::uint64_t vvar_at = 0;
  std::uint64_t vvar_size = 0;
  for (const pb::VmaEntry& vma : mm.vmas()) {
    if ((vma.status() & kVvar) != 0) {
      vvar_at = vma.start();
      vvar_size = vma.end() - vma.start();
    }
  }
  const Range place = vdso_of(mm);
  std::uint64_t have_vvar = 0;
  for (const auto& piece : kernel.vvar) {
    have_vvar += piece.size;
  }
  if (place.start == place.end) {
    for (const auto& piece : kernel.vvar) {
      batch.must("munmap(vvar)", SYS_munmap, {piece.start, piece.size});
    }
    if (kernel.vdso.size != 0) {
      batch.must("munmap(vdso)", SYS_munmap, {kernel.vdso.start, kernel.vdso.size});
    }
    kernel = {};
    return {};
  }
  if (!kernel.foreign && (place.end - place.start != kernel.vdso.size || vvar_size != have_vvar)) {
    return fail(Kind::corrupt, "the vDSO of the set is that of this kernel, but has {} + {} bytes, and here {} + {}",
                vvar_size, place.end - place.start, have_vvar, kernel.vdso.size);
  }
  // One mremap for each mapping: kernels before 6.17 do not move several at once.
  const auto move = [&](std::uint64_t vvar_to, std::uint64_t vdso_to) {
    for (auto& piece : kernel.vvar) {
      batch.must("mremap(vvar)", SYS_mremap,
                 {piece.start, piece.size, piece.size, MREMAP_MAYMOVE | MREMAP_FIXED, vvar_to});
      piece.start = vvar_to;
      vvar_to += piece.size;
    }
    batch.must("mremap(vdso)", SYS_mremap,
               {kernel.vdso.start, kernel.vdso.size, kernel.vdso.size, MREMAP_MAYMOVE | MREMAP_FIXED, vdso_to});
    kernel.vdso.start = vdso_to;
  };
  if (!kernel.foreign && !kernel.vvar.empty() && kernel.vvar.front().start == vvar_at &&
      kernel.vdso.start == place.start) {
    return {};
  }
  if (kernel.vdso.size != 0) {
    move(park, park + have_vvar);
    if (!kernel.foreign) {
      move(vvar_at, place.start);
    }
  }
  return {};
}

}  // namespace

KernelMappings find_kernel_mappings(const std::vector<sys::Mapping>& mappings) {
  KernelMappings out;
  for (const sys::Mapping& m : mappings) {
    if (m.name == "[vvar]" || m.name == "[vvar_vclock]") {
      out.vvar.push_back({m.start, m.size()});
    } else if (m.name == "[vdso]") {
      out.vdso = {m.start, m.size()};
    }
  }
  return out;
}

Result<bool> has_foreign_vdso(const RestoreTask& task, image::PageStore* pages) {
  const pb::MmEntry& mm = *task.mm;
  const Range place = vdso_of(mm);
  if (place.start == place.end) {
    return false;
  }
  std::string build = mm.ferry_vdso_build();
  if (build.empty() && pages != nullptr) {
    FERRY_TRY(const auto extents,
              pages->extents({image::Type::pagemap, static_cast<std::uint64_t>(task.ns_pid().value)}));
    FERRY_TRY(const auto content, content_of(place, extents));
    build = vdso::build_of(content);
  }
  if (build.empty() || build == vdso::build_of(vdso::own())) {
    return false;
  }
  for (const RestoreThread& thread : task.threads) {
    const std::uint64_t ip = thread.core->thread_info().gpregs().ip();
    if (ip >= place.start && ip < place.end) {
      return fail(
          Kind::unsupported,
          "task {} was stopped inside the vDSO of another kernel, which does not work here; checkpoint it again",
          thread.ns_tid);
    }
  }
  return true;
}

Result<std::uint64_t> find_hole(const RestoreContext& context, const std::vector<sys::Mapping>& now,
                                std::uint64_t size) {
  std::vector<Range> used;
  for (const auto& m : now) {
    used.push_back({m.start, m.end});
  }
  for (const auto& task : context.tasks) {
    if (task->mm == nullptr) {
      continue;
    }
    FERRY_CHECK(check(*task->mm).during("mm-{}", task->ns_pid()));
    for (const auto& vma : task->mm->vmas()) {
      // A stack may have grown further down in the meantime of another task: leave it room.
      const std::uint64_t below =
          (vma.flags() & MAP_GROWSDOWN) != 0 ? std::min<std::uint64_t>(vma.start(), 8U << 20) : 0;
      used.push_back({vma.start() - below, vma.end()});
    }
  }
  std::sort(used.begin(), used.end(), [](const Range& a, const Range& b) { return a.start < b.start; });
  const auto at = lowest_room(used, size);
  if (!at.has_value()) {
    return fail(Kind::unsupported, "no {} bytes of address space are free in every task of the set", size);
  }
  return *at;
}

void add_clearing(tracee::Batch& batch, const tracee::Area& area, const KernelMappings& kernel) {
  std::vector<Range> keep{{area.base, area.base + area.size}};
  for (const auto& piece : kernel.vvar) {
    keep.push_back({piece.start, piece.start + piece.size});
  }
  if (kernel.vdso.size != 0) {
    keep.push_back({kernel.vdso.start, kernel.vdso.start + kernel.vdso.size});
  }
  std::sort(keep.begin(), keep.end(), [](const Range& a, const Range& b) { return a.start < b.start; });
  std::uint64_t at = 0;
  for (const Range& r : keep) {
    if (r.start > at) {
      batch.must("munmap", SYS_munmap, {at, r.start - at});
    }
    at = r.end;
  }
  if (at < kUserEnd) {
    batch.must("munmap", SYS_munmap, {at, kUserEnd - at});
  }
}

void add_advice(const pb::VmaEntry& vma, tracee::Batch& batch) {
  for (int advice = 0; advice < 64; ++advice) {
    if ((vma.madv() >> advice & 1) != 0) {
      batch.must("madvise", SYS_madvise, {vma.start(), vma.end() - vma.start(), advice});
    }
  }
}

Result<void> add_mappings(RestoreTask& task, RestoreContext& context, KernelMappings& kernel, std::uint64_t park,
                          tracee::Batch& batch, const InPlace& in_place) {
  FERRY_CHECK(move_kernel_mappings(*task.mm, kernel, park, batch));
  Segments segments(task, context);
  std::uint64_t fetched_file = 0;  // shmid + 1 of the file that `fetched` holds
  tracee::Value fetched;
  const auto close_fetched = [&] {
    if (fetched_file != 0) {
      batch.must("closing a mapped file", SYS_close, {fetched});
      fetched_file = 0;
    }
  };
  for (const pb::VmaEntry& vma : task.mm->vmas()) {
    if ((!is_mapped_anew(vma) && !(kernel.foreign && (vma.status() & kVdso) != 0)) ||
        io_uring::is_ring(vma, context.files)) {
      continue;
    }
    if ((vma.status() & kRegular) == 0 || (vma.status() & kShadowStack) != 0) {
      return fail(Kind::unsupported, "mapping {:x}-{:x} of pid {} is of a kind (status {:#x}) that cannot be restored",
                  vma.start(), vma.end(), task.ns_pid(), vma.status());
    }
    const std::uint64_t size = vma.end() - vma.start();
    // MAP_LOCKED would fault everything in at once; mlock comes last.
    std::uint32_t flags = (vma.flags() & ~std::uint32_t{MAP_LOCKED}) | MAP_FIXED_NOREPLACE;
    if (vma.ferry_droppable()) {
      flags = (flags & ~std::uint32_t{MAP_TYPE}) | kDroppable;
    }
    if ((vma.status() & kSysvIpc) != 0) {
      FERRY_CHECK(segments.add(vma, batch));
      continue;
    }
    const std::uint32_t first_prot = vma.prot() | (vma.ferry_was_writable() ? PROT_WRITE : 0U);
    std::uint32_t has = first_prot;
    bool fresh = false;
    const bool file = (vma.status() & (kFilePrivate | kFileShared | kMemfd | kSocket)) != 0;
    if (file) {
      if (fetched_file != vma.shmid() + 1) {
        close_fetched();
        FERRY_TRY(const int ours, file_of(vma, context).during("mapping {:x}-{:x}", vma.start(), vma.end()));
        fetched = batch.must("fetching a mapped file", SYS_pidfd_getfd, {task.controller_pidfd, ours, 0});
        fetched_file = vma.shmid() + 1;
      }
      batch.must("mmap(file)", SYS_mmap,
                 {vma.start(), size, first_prot, flags & ~std::uint32_t{MAP_ANONYMOUS}, fetched, vma.pgoff()});
    } else if (const auto there = in_place ? in_place(vma) : std::vector<sys::PageRange>(); !there.empty()) {
      for (const sys::PageRange& gap : without({{vma.start(), vma.end()}}, there)) {
        batch.must("mmap(anonymous)", SYS_mmap,
                   {gap.start, gap.end - gap.start, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0});
      }
      has = PROT_READ | PROT_WRITE;
    } else {
      batch.must("mmap(anonymous)", SYS_mmap, {vma.start(), size, first_prot, flags | MAP_ANONYMOUS, -1, 0});
      fresh = true;
    }
    if (has != vma.prot()) {
      if (fresh && vma.ferry_was_writable()) {
        // Memory that was written to once stays accounted for when it is protected (mprotect_fixup in
        // mm/mprotect.c); so that it counts as that, its first page is there for a moment.
        batch.may(SYS_madvise, {vma.start(), kPage, MADV_POPULATE_WRITE});
        batch.may(SYS_madvise, {vma.start(), kPage, MADV_DONTNEED});
      }
      batch.must("mprotect", SYS_mprotect, {vma.start(), size, vma.prot()});
    }
    add_advice(vma, batch);
    if (vma.has_ferry_name()) {
      batch.may(SYS_prctl, {PR_SET_VMA, PR_SET_VMA_ANON_NAME, vma.start(), size, batch.string(vma.ferry_name())});
    }
  }
  close_fetched();
  return {};
}

namespace {

// One stretch of a pages file into as many places of the target as it has extents.
class Scatter {
 public:
  explicit Scatter(RestoreTask& task) : task_(task) {}
  ~Scatter() { unmap(); }
  Scatter(const Scatter&) = delete;
  Scatter& operator=(const Scatter&) = delete;

  Result<void> add(const image::Extent& e) {
    std::uint64_t done = 0;
    const std::uint64_t size = e.page_count * image::kPageSize;
    while (done < size) {
      const std::uint64_t offset = e.offset + done;
      if (base_ == nullptr || e.fd != fd_ || offset < mapped_at_ || offset >= mapped_at_ + mapped_size_) {
        FERRY_CHECK(flush());
        FERRY_CHECK(map(e.fd, offset, size - done));
      }
      const std::uint64_t take = std::min(size - done, mapped_at_ + mapped_size_ - offset);
      local_.push_back({base_ + (offset - mapped_at_), take});
      remote_.push_back({reinterpret_cast<void*>(e.vaddr + done), take});
      done += take;
      if (local_.size() == 512) {
        FERRY_CHECK(flush());
      }
    }
    return {};
  }

  Result<void> flush() {
    if (local_.empty()) {
      return {};
    }
    std::size_t total = 0;
    for (const iovec& v : local_) {
      total += v.iov_len;
    }
    const ssize_t n =
        ::process_vm_writev(task_.pid.value, local_.data(), local_.size(), remote_.data(), remote_.size(), 0);
    if (n != static_cast<ssize_t>(total)) {
      // Read-only private mappings keep their final protection and are written past it.
      for (std::size_t i = 0; i < local_.size(); ++i) {
        FERRY_CHECK(sys::write_memory(task_.pid, reinterpret_cast<std::uint64_t>(remote_[i].iov_base),
                                      std::span(static_cast<const std::byte*>(local_[i].iov_base), local_[i].iov_len),
                                      task_.process.memory()));
      }
    }
    local_.clear();
    remote_.clear();
    return {};
  }

 private:
  Result<void> map(int fd, std::uint64_t offset, std::uint64_t wanted) {
    unmap();
    fd_ = fd;
    mapped_at_ = offset;
    // Reading a hole of a tmpfs through a mapping of it would allocate it; this reads the zero page instead.
    const off_t data = ::lseek(fd, static_cast<off_t>(offset), SEEK_DATA);
    const bool hole = data < 0 ? errno == ENXIO : data > static_cast<off_t>(offset);
    const off_t end = hole ? data : ::lseek(fd, static_cast<off_t>(offset), SEEK_HOLE);
    if (end < 0 && !hole) {
      return sys_fail("lseek(pages file)");
    }
    mapped_size_ = end < 0 ? wanted : static_cast<std::uint64_t>(end) - offset;
    mapped_size_ = std::min<std::uint64_t>({kChunk, mapped_size_, hole ? wanted : kChunk});
    void* at =
        hole ? ::mmap(nullptr, mapped_size_, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
             : ::mmap(nullptr, mapped_size_, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, static_cast<off_t>(offset));
    if (at == MAP_FAILED) {
      base_ = nullptr;
      return sys_fail(fmt::format("mmap(pages file, offset {})", offset));
    }
    base_ = static_cast<std::byte*>(at);
    return {};
  }
  void unmap() {
    if (base_ != nullptr) {
      ::munmap(base_, mapped_size_);
      base_ = nullptr;
    }
  }

  RestoreTask& task_;
  std::vector<iovec> local_, remote_;
  std::byte* base_ = nullptr;
  int fd_ = -1;
  std::uint64_t mapped_at_ = 0, mapped_size_ = 0;
};

// Cuts a list of extents in two of about the same size.
std::pair<std::vector<image::Extent>, std::vector<image::Extent>> halves(std::vector<image::Extent> all,
                                                                         std::uint64_t pages) {
  std::vector<image::Extent> first;
  std::uint64_t left = pages / 2;
  std::size_t i = 0;
  for (; i < all.size() && left > 0; ++i) {
    image::Extent& e = all[i];
    if (e.page_count > left) {
      image::Extent head = e;
      head.page_count = left;
      first.push_back(head);
      e.vaddr += left * image::kPageSize;
      e.offset += left * image::kPageSize;
      e.page_count -= left;
      break;
    }
    left -= e.page_count;
    first.push_back(e);
  }
  all.erase(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(i));
  return {std::move(first), std::move(all)};
}

Result<void> write_all_of(RestoreTask& task, const std::vector<image::Extent>& extents) {
  Scatter scatter(task);
  for (const image::Extent& e : extents) {
    FERRY_CHECK(scatter.add(e).during("{:#x}", e.vaddr));
  }
  return scatter.flush();
}

// Most of the time goes into the target's page faults, which two threads share well.
Result<void> write_extents(RestoreTask& task, std::vector<image::Extent> extents, std::uint64_t pages) {
  if (pages * image::kPageSize < kWorthAThread) {
    return write_all_of(task, extents);
  }
  const auto [first, second] = halves(std::move(extents), pages);
  Result<void> other;
  std::thread helper([&task, &other, &half = second] { other = write_all_of(task, half); });
  Result<void> mine = write_all_of(task, first);
  helper.join();
  FERRY_CHECK(std::move(mine));
  return other;
}

}  // namespace

Result<std::uint64_t> fill(RestoreTask& task, image::PageStore& pages, const KernelMappings& kernel) {
  FERRY_TRY(const auto extents, pages.extents({image::Type::pagemap, static_cast<std::uint64_t>(task.ns_pid().value)}));
  return fill(task, extents, kernel);
}

Result<std::uint64_t> fill(RestoreTask& task, const std::vector<image::Extent>& extents, const KernelMappings& kernel) {
  const Range place = vdso_of(*task.mm);
  std::uint64_t written = 0;
  std::vector<image::Extent> to_write;
  for (const image::Extent& e : extents) {
    if (e.fd < 0) {
      return fail(Kind::unsupported, "page {:#x} of pid {} is with a page server (lazy pages), not in the set", e.vaddr,
                  task.ns_pid());
    }
    // Of the vDSO nothing is written as it is; an extent may reach beyond it.
    for (const Range& part :
         {Range{e.vaddr, std::min(end_of(e), place.start)}, Range{std::max(e.vaddr, place.end), end_of(e)}}) {
      if (part.start < part.end) {
        to_write.push_back(
            {part.start, (part.end - part.start) / image::kPageSize, e.fd, e.offset + (part.start - e.vaddr)});
        written += to_write.back().page_count;
      }
    }
  }
  FERRY_CHECK(write_extents(task, std::move(to_write), written).during("filling the memory of pid {}", task.ns_pid()));
  if (kernel.foreign) {
    FERRY_TRY(auto content, content_of(place, extents));
    const auto ours = kernel.vdso.size == 0 ? std::span<const std::byte>() : vdso::own();
    FERRY_CHECK(vdso::lead_out(content, ours, kernel.vdso.start).during("the vDSO of pid {}", task.ns_pid()));
    FERRY_CHECK(sys::write_memory(task.pid, place.start, content, task.process.memory()));
  }
  return written;
}

Result<void> finish(RestoreTask& task, RestoreContext& context, tracee::Batch& batch) {
  const pb::MmEntry& mm = *task.mm;
  for (const pb::VmaEntry& vma : mm.vmas()) {
    const std::uint64_t size = vma.end() - vma.start();
    if (is_mapped_anew(vma) && (vma.flags() & MAP_LOCKED) != 0) {
      batch.must("mlock2", SYS_mlock2, {vma.start(), size, vma.ferry_lock_on_fault() ? MLOCK_ONFAULT : 0});
    }
  }
  // Behind mlock, which would find that it cannot bring them in.
  for (const pb::VmaEntry& vma : mm.vmas()) {
    if ((vma.status() & kGuard) != 0) {
      batch.must("madvise(MADV_GUARD_INSTALL)", SYS_madvise, {vma.start(), vma.end() - vma.start(), kInstallGuard});
    }
  }
  for (const pb::VmaEntry& vma : mm.vmas()) {
    if ((vma.status() & kUprobes) != 0 && !context.options.allow_uprobes) {
      return fail(Kind::unsupported, "pid {} had uprobes in it; give --allow-uprobes if they are still there",
                  task.ns_pid());
    }
    if (vma.ferry_sealed()) {
      batch.must("mseal", kMseal, {vma.start(), vma.end() - vma.start(), 0});
    }
  }
  std::vector<std::uint64_t> auxv(mm.ferry_auxv().begin(), mm.ferry_auxv().end());
  if (auxv.empty()) {
    auxv.assign(mm.mm_saved_auxv().begin(), mm.mm_saved_auxv().end());
  }
  const auto vector = batch.bytes(std::as_bytes(std::span(auxv)));
  FERRY_TRY(const int exe, context.files.get(mm.exe_file_id()).during("the program of pid {}", task.ns_pid()));
  const auto fetched = batch.must("fetching the program", SYS_pidfd_getfd, {task.controller_pidfd, exe, 0});
  prctl_mm_map map{};
  map.start_code = mm.mm_start_code();
  map.end_code = mm.mm_end_code();
  map.start_data = mm.mm_start_data();
  map.end_data = mm.mm_end_data();
  map.start_brk = mm.mm_start_brk();
  map.brk = mm.mm_brk();
  map.start_stack = mm.mm_start_stack();
  map.arg_start = mm.mm_arg_start();
  map.arg_end = mm.mm_arg_end();
  map.env_start = mm.mm_env_start();
  map.env_end = mm.mm_env_end();
  map.auxv_size = static_cast<__u32>(auxv.size() * sizeof(std::uint64_t));
  const auto at = batch.object(map);
  batch.point(at, offsetof(prctl_mm_map, auxv), vector);
  // The result's upper half falls into the padding behind the structure: data is aligned to 16.
  static_assert(offsetof(prctl_mm_map, exe_fd) + 4 == sizeof(prctl_mm_map) && sizeof(prctl_mm_map) % 16 != 0);
  batch.store(fetched, at, offsetof(prctl_mm_map, exe_fd));
  batch.must("prctl(PR_SET_MM_MAP)", SYS_prctl, {PR_SET_MM, PR_SET_MM_MAP, at, sizeof map, 0});
  batch.must("closing the program", SYS_close, {fetched});
  if (mm.has_ferry_lock_future()) {  // last: nothing is mapped after this
    batch.must("mlockall", SYS_mlockall, {mm.ferry_lock_future()});
  }
  return {};
}

}  // namespace ferry::state::memory

// Address spaces: mappings, their attributes, and what they hold.
//
// collect_* and save_* on a stopped tree; map, fill and finish on skeletons whose address space is
// empty but for the batch area and the vDSO.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "base/error.h"
#include "image/page_store.h"
#include "state/dump.h"
#include "state/file_kind.h"
#include "state/restore.h"
#include "sys/pagemap.h"
#include "tracee/batch.h"

namespace ferry::state::memory {

// CRIU's status bits of a mapping (docs/images.md).
enum Status : std::uint32_t {
  kRegular = 1 << 0,
  kVsyscall = 1 << 2,
  kVdso = 1 << 3,
  kHeap = 1 << 5,
  kFilePrivate = 1 << 6,
  kFileShared = 1 << 7,
  kAnonShared = 1 << 8,
  kAnonPrivate = 1 << 9,
  kSysvIpc = 1 << 10,
  kSocket = 1 << 11,
  kVvar = 1 << 12,
  kAioRing = 1 << 13,
  kMemfd = 1 << 14,
  kShadowStack = 1 << 15,
  kGuard = 1 << 16,
  kUprobes = 1 << 17,
};

// --- checkpoint

// The current break, which only the process itself can tell.
Answers ask(DumpTask& task, tracee::Batch& batch);
// mm-PID: every mapping, exe, auxv, the borders of code, data, stack, arguments.
// Errors: unsupported, by mapping.
Result<void> collect(DumpTask& task, DumpContext& context);
// Pages of private memory into pages-N.img.  Adds to the report's page counts.  `reading`: read_pages.h.
enum class Reading : std::uint8_t;
Result<void> save_pages(DumpTask& task, DumpContext& context, Reading reading, DumpReport& report);

// --- restore

// Where the kernel's own mappings are in a process.
struct KernelMappings {
  struct Piece {
    std::uint64_t start = 0, size = 0;
  };
  std::vector<Piece> vvar;  // neighbours, ascending
  Piece vdso;               // size 0: none
  // At a restore: the task had the vDSO of another kernel, which becomes memory at its place (state/vdso).
  bool foreign = false;
};
KernelMappings find_kernel_mappings(const std::vector<sys::Mapping>& mappings);

// A place of `size` bytes that no task of the set and nothing in `now` uses.
Result<std::uint64_t> find_hole(const RestoreContext& context, const std::vector<sys::Mapping>& now,
                                std::uint64_t size);

// Empties the skeleton but for the area and the kernel's mappings.  To be run once, in the root
// skeleton, before anything is cloned from it.
void add_clearing(tracee::Batch& batch, const tracee::Area& area, const KernelMappings& kernel);
// Which parts of a mapping are there already, readable and writable.
using InPlace = std::function<std::vector<sys::PageRange>(const pb::VmaEntry&)>;
// Whether the task's vDSO is another kernel's.  `pages`: asked if the set does not tell which build it is; may be
// nullptr. Errors: unsupported if it is, and a thread stands within it.
Result<bool> has_foreign_vdso(const RestoreTask& task, image::PageStore* pages);
// Moves vvar and vDSO to where the task wants them, by way of `park` if they would overlap, or leaves them in `park` if
// they are not what the task had there, and makes all its mappings but what is `in_place` and those that belong to
// the kernel as well (aio, io_uring).  `kernel` is updated.
Result<void> add_mappings(RestoreTask& task, RestoreContext& context, KernelMappings& kernel, std::uint64_t park,
                          tracee::Batch& batch, const InPlace& in_place = {});
// madvise(2), as the mapping has it.
void add_advice(const pb::VmaEntry& vma, tracee::Batch& batch);
// Writes the pages from outside; the value is their number.  The vDSO of another kernel is made to lead to that of
// `kernel`.
Result<std::uint64_t> fill(RestoreTask& task, image::PageStore& pages, const KernelMappings& kernel);
Result<std::uint64_t> fill(RestoreTask& task, const std::vector<image::Extent>& extents, const KernelMappings& kernel);
// mlock, PR_SET_MM_MAP with exe and auxv.
Result<void> finish(RestoreTask& task, RestoreContext& context, tracee::Batch& batch);

}  // namespace ferry::state::memory

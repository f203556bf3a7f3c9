// What the kernel knows of an io_uring.
//
// Neither procfs nor a system call tells how a ring was set up, which requests are under way, or what is registered
// with it (fdinfo has its positions and some lists, but not requests that a device or a worker has).  So the kernel's
// own structure is read, at the offsets that the kernel's type information gives.  Its names change from version to
// version: under a kernel that has others, nothing is guessed, and rings are not carried.
// Source: include/linux/io_uring_types.h of Linux 6.18.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/ids.h"
#include "sys/btf.h"
#include "sys/kernel_memory.h"

namespace ferry::state::io_uring {

struct Ring {
  std::uint32_t setup_flags = 0;  // IORING_SETUP_*
  std::uint32_t sq_entries = 0, cq_entries = 0;
  std::uint32_t sq_head = 0, cq_tail = 0;       // the kernel's own positions
  std::uint32_t sq_array = 0;                   // offset in the rings; 0: none
  std::uint64_t rings_size = 0, sqes_size = 0;  // of the two areas, in bytes
  std::uint32_t in_flight = 0;                  // requests that were taken and have not ended
  bool overflow = false;                        // completions that found no room
  const char* refused = nullptr;                // what else it has that cannot be carried

  std::uint32_t clock = 0;
  std::uint32_t worker_limits[2] = {};
  HostPid issuer;   // the only thread that may submit; 0: any
  HostPid creator;  // a thread whose process made it; 0: it is not there any more

  // Registered: files and eventfd by the address of the kernel's object, 0 where a slot is empty.
  struct File {
    std::uint64_t object = 0, tag = 0;
  };
  std::vector<File> files;
  std::uint32_t file_alloc_start = 0, file_alloc_end = 0;
  struct Buffer {
    std::uint64_t address = 0, size = 0, tag = 0;  // size 0: an empty slot
  };
  std::vector<Buffer> buffers;
  std::uint64_t event = 0;  // 0: none
  bool event_async = false;
  struct Index {
    HostPid tid;
    std::uint32_t index;
  };
  std::vector<Index> indices;  // threads that have the ring's descriptor registered, and where
};

class RingLook {
 public:
  RingLook() = default;
  // Once, at the first call.  It proves itself on a ring of our own, of which is known what is to be seen.
  // Errors: unsupported or denied, where this kernel does not tell or not to us.
  Result<void> open();
  // `fd`: of ours.  To be trusted as far as whoever uses the ring stands still.
  [[nodiscard]] Result<Ring> look(int fd) const;
  // The address of the description behind a descriptor of ours, and of what it stands for.
  struct Object {
    std::uint64_t file = 0, content = 0;
  };
  [[nodiscard]] Result<Object> object_behind(int fd) const;

 private:
  struct Offsets {
    sys::Btf::Field flags, submitter, rings, clock, sq_array, sq_head, sq_entries;
    sys::Btf::Field file_count, file_nodes, alloc_start, alloc_end, buffer_count, buffer_nodes;
    sys::Btf::Field allocated, free_list, cq_tail, cq_entries, event, overflow;
    sys::Btf::Field buffer_lists, restricted, receivers, personalities, tasks, limits, region_pages, sq_pages,
        parameter_pages, memory;
    std::uint32_t size = 0;
    sys::Btf::Field node_file, node_tag, buffer_address, buffer_size, buffer_of_kernel;
    sys::Btf::Field event_context, event_async;
    sys::Btf::Field link, link_task, task_pid, task_rings, task_memory, task_files, registered;
    sys::Btf::Field table, table_size, table_files, content;
    std::int64_t napi_mode = -1;  // -1: this kernel is without busy polling
  };
  struct View;  // a copy of the kernel's structure

  Result<void> find_offsets(const sys::Btf& btf);
  [[nodiscard]] Result<void> prove() const;
  [[nodiscard]] Result<std::uint32_t> count_free(std::uint64_t first, std::uint32_t most) const;
  Result<void> look_at_files(const View& view, Ring& out) const;
  Result<void> look_at_buffers(const View& view, Ring& out) const;
  Result<void> look_at_tasks(const View& view, std::uint64_t file, Ring& out) const;

  sys::KernelMemory memory_;
  bool proved_ = false;
  Offsets at_;
};

}  // namespace ferry::state::io_uring

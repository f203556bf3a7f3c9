#include "state/io_uring/ring_look.h"

#include <linux/io_uring.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <span>

#include "state/io_uring/areas.h"

namespace ferry::state::io_uring {
namespace {

constexpr std::uint64_t kPage = 4096;
constexpr std::uint8_t kNapiOff = 255;  // IO_URING_NAPI_TRACKING_INACTIVE
constexpr std::uint64_t kFileFlags =
    7;  // what a registered file's pointer carries in its low bits (io_uring/filetable.h)
constexpr std::size_t kMostTasks = 1 << 20;
constexpr std::uint32_t kMostSlots = 1 << 20;  // IORING_MAX_FIXED_FILES in io_uring/rsrc.c

}  // namespace

struct RingLook::View {
  std::uint64_t address;
  std::vector<std::byte> bytes;

  template <class T>
  [[nodiscard]] T get(std::uint32_t offset) const {
    T out;
    std::memcpy(&out, bytes.data() + offset, sizeof out);
    return out;
  }
  [[nodiscard]] std::uint32_t word(const sys::Btf::Field& field) const { return get<std::uint32_t>(field.offset); }
  [[nodiscard]] std::uint64_t pointer(const sys::Btf::Field& field) const { return get<std::uint64_t>(field.offset); }
};

Result<void> RingLook::open() {
  if (proved_) {
    return {};
  }
  FERRY_TRY(const sys::Btf btf, sys::Btf::of_kernel());
  FERRY_CHECK(find_offsets(btf));
  FERRY_TRY(memory_, sys::KernelMemory::open());
  FERRY_CHECK(prove());
  proved_ = true;
  return {};
}

// With a request that has ended, one that never will, a registered file and a registered eventfd.
Result<void> RingLook::prove() const {
  constexpr std::uint32_t kEntries = 8;
  io_uring_params made{};
  made.flags = IORING_SETUP_SUBMIT_ALL;
  const UniqueFd ring(static_cast<int>(::syscall(SYS_io_uring_setup, kEntries, &made)));
  const UniqueFd never(::eventfd(0, EFD_CLOEXEC));
  if (!ring || !never) {
    return sys_fail("io_uring_setup");
  }
  FERRY_TRY(const Areas areas, Areas::map(ring.get(), made.sq_off.array + kEntries * sizeof(std::uint32_t),
                                          kEntries * sizeof(io_uring_sqe), PROT_READ | PROT_WRITE));
  io_uring_sqe requests[2]{};
  requests[0].opcode = IORING_OP_POLL_ADD;
  requests[0].fd = never.get();
  requests[0].poll32_events = POLLIN;
  requests[1].opcode = IORING_OP_NOP;
  std::memcpy(areas.sqes().data(), requests, sizeof requests);
  areas.word(made.sq_off.array) = 0;
  areas.word(made.sq_off.array + 4) = 1;
  areas.word(made.sq_off.tail) = 2;
  const int file = never.get();
  if (::syscall(SYS_io_uring_enter, ring.get(), 2, 0, 0, nullptr, 0) != 2 ||
      ::syscall(SYS_io_uring_register, ring.get(), IORING_REGISTER_FILES, &file, 1) != 0 ||
      ::syscall(SYS_io_uring_register, ring.get(), IORING_REGISTER_EVENTFD, &file, 1) != 0) {
    return sys_fail("using an io_uring of our own");
  }
  FERRY_TRY(const Ring seen, look(ring.get()));
  FERRY_TRY(const Object object, object_behind(never.get()));
  if ((seen.setup_flags & made.flags) != made.flags || seen.sq_entries != made.sq_entries ||
      seen.cq_entries != made.cq_entries || seen.sq_head != 2 || seen.cq_tail != 1 || seen.in_flight != 1 ||
      seen.sq_array != made.sq_off.array || seen.overflow || seen.refused != nullptr || seen.issuer.value != 0 ||
      seen.files.size() != 1 || seen.files[0].object != object.file || seen.event != object.content ||
      !seen.buffers.empty() || seen.clock != CLOCK_MONOTONIC) {
    return fail(Kind::unsupported, "an io_uring of our own is not seen as it is");
  }
  return {};
}

Result<void> RingLook::find_offsets(const sys::Btf& btf) {
  struct Wanted {
    const char* name;
    sys::Btf::Field Offsets::*to;
    std::uint32_t size;  // what is read of it
  };
  struct Structure {
    const char* name;
    std::vector<Wanted> fields;
  };
  const Structure structures[] = {
      {"io_ring_ctx",
       {{"flags", &Offsets::flags, 4},
        {"submitter_task", &Offsets::submitter, 8},
        {"rings", &Offsets::rings, 8},
        {"clockid", &Offsets::clock, 4},
        {"sq_array", &Offsets::sq_array, 8},
        {"cached_sq_head", &Offsets::sq_head, 4},
        {"sq_entries", &Offsets::sq_entries, 4},
        {"file_table.data.nr", &Offsets::file_count, 4},
        {"file_table.data.nodes", &Offsets::file_nodes, 8},
        {"file_alloc_start", &Offsets::alloc_start, 4},
        {"file_alloc_end", &Offsets::alloc_end, 4},
        {"buf_table.nr", &Offsets::buffer_count, 4},
        {"buf_table.nodes", &Offsets::buffer_nodes, 8},
        {"nr_req_allocated", &Offsets::allocated, 4},
        {"submit_state.free_list.next", &Offsets::free_list, 8},
        {"cached_cq_tail", &Offsets::cq_tail, 4},
        {"cq_entries", &Offsets::cq_entries, 4},
        {"io_ev_fd", &Offsets::event, 8},
        {"cq_overflow_list.next", &Offsets::overflow, 8},
        {"io_bl_xa.xa_head", &Offsets::buffer_lists, 8},
        {"restrictions.registered", &Offsets::restricted, 1},
        {"zcrx_ctxs.xa_head", &Offsets::receivers, 8},
        {"personalities.xa_head", &Offsets::personalities, 8},
        {"tctx_list.next", &Offsets::tasks, 8},
        {"iowq_limits", &Offsets::limits, 8},
        {"ring_region.nr_pages", &Offsets::region_pages, 4},
        {"sq_region.nr_pages", &Offsets::sq_pages, 4},
        {"param_region.nr_pages", &Offsets::parameter_pages, 4},
        {"mm_account", &Offsets::memory, 8}}},
      {"io_rsrc_node", {{"file_ptr", &Offsets::node_file, 8}, {"tag", &Offsets::node_tag, 8}}},
      {"io_mapped_ubuf",
       {{"ubuf", &Offsets::buffer_address, 8},
        {"len", &Offsets::buffer_size, 4},
        {"is_kbuf", &Offsets::buffer_of_kernel, 1}}},
      {"io_ev_fd", {{"cq_ev_fd", &Offsets::event_context, 8}, {"eventfd_async", &Offsets::event_async, 4}}},
      {"io_tctx_node", {{"ctx_node", &Offsets::link, 16}, {"task", &Offsets::link_task, 8}}},
      {"task_struct",
       {{"pid", &Offsets::task_pid, 4},
        {"io_uring", &Offsets::task_rings, 8},
        {"mm", &Offsets::task_memory, 8},
        {"files", &Offsets::task_files, 8}}},
      {"io_uring_task", {{"registered_rings", &Offsets::registered, 8}}},
      {"files_struct", {{"fdt", &Offsets::table, 8}}},
      {"fdtable", {{"max_fds", &Offsets::table_size, 4}, {"fd", &Offsets::table_files, 8}}},
      {"file", {{"private_data", &Offsets::content, 8}}},
  };
  for (const Structure& s : structures) {
    FERRY_TRY(const std::uint32_t type, btf.structure(s.name));
    for (const Wanted& w : s.fields) {
      FERRY_TRY(at_.*w.to, btf.field(type, w.name));
      if ((at_.*w.to).size < w.size) {
        return fail(Kind::unsupported, "{} of this kernel's {} has {} bytes", w.name, s.name, (at_.*w.to).size);
      }
    }
  }
  FERRY_TRY(const std::uint32_t ring, btf.structure("io_ring_ctx"));
  at_.size = btf.size_of(ring);
  if (const auto napi = btf.field(ring, "napi_track_mode"); napi.has_value()) {
    at_.napi_mode = napi->offset;
  }
  return {};
}

Result<RingLook::Object> RingLook::object_behind(int fd) const {
  FERRY_TRY(const std::uint64_t task, memory_.current_task());
  FERRY_TRY(const auto files, memory_.read<std::uint64_t>(task + at_.task_files.offset));
  FERRY_TRY(const auto table, memory_.read<std::uint64_t>(files + at_.table.offset));
  FERRY_TRY(const auto size, memory_.read<std::uint32_t>(table + at_.table_size.offset));
  if (fd < 0 || static_cast<std::uint32_t>(fd) >= size) {
    return fail(Kind::invalid, "fd {} is not in a table of {}", fd, size);
  }
  FERRY_TRY(const auto list, memory_.read<std::uint64_t>(table + at_.table_files.offset));
  Object out;
  FERRY_TRY(out.file, memory_.read<std::uint64_t>(list + static_cast<std::uint64_t>(fd) * 8));
  FERRY_TRY(out.content, memory_.read<std::uint64_t>(out.file + at_.content.offset));
  return out;
}

// Requests that have ended are kept for the next ones, in a list.
Result<std::uint32_t> RingLook::count_free(std::uint64_t first, std::uint32_t most) const {
  std::uint32_t out = 0;
  for (std::uint64_t at = first; at != 0 && out < most; ++out) {
    FERRY_TRY(at, memory_.read<std::uint64_t>(at));
  }
  return out;
}

Result<void> RingLook::look_at_files(const View& view, Ring& out) const {
  const std::uint32_t count = std::min(view.word(at_.file_count), kMostSlots);
  FERRY_TRY(const auto nodes, memory_.read_array<std::uint64_t>(view.pointer(at_.file_nodes), count));
  out.files.resize(count);
  for (std::size_t i = 0; i < count; ++i) {
    if (nodes[i] != 0) {
      FERRY_TRY(const auto object, memory_.read<std::uint64_t>(nodes[i] + at_.node_file.offset));
      out.files[i].object = object & ~kFileFlags;
      FERRY_TRY(out.files[i].tag, memory_.read<std::uint64_t>(nodes[i] + at_.node_tag.offset));
    }
  }
  out.file_alloc_start = view.word(at_.alloc_start);
  out.file_alloc_end = view.word(at_.alloc_end);
  return {};
}

Result<void> RingLook::look_at_buffers(const View& view, Ring& out) const {
  const std::uint32_t count = std::min(view.word(at_.buffer_count), kMostSlots);
  FERRY_TRY(const auto nodes, memory_.read_array<std::uint64_t>(view.pointer(at_.buffer_nodes), count));
  out.buffers.resize(count);
  for (std::size_t i = 0; i < count; ++i) {
    if (nodes[i] == 0) {
      continue;
    }
    // The same place as a file's pointer: a union.
    FERRY_TRY(const auto buffer, memory_.read<std::uint64_t>(nodes[i] + at_.node_file.offset));
    FERRY_TRY(out.buffers[i].tag, memory_.read<std::uint64_t>(nodes[i] + at_.node_tag.offset));
    FERRY_TRY(out.buffers[i].address, memory_.read<std::uint64_t>(buffer + at_.buffer_address.offset));
    FERRY_TRY(const auto size, memory_.read<std::uint32_t>(buffer + at_.buffer_size.offset));
    out.buffers[i].size = size;
    FERRY_TRY(const auto of_kernel, memory_.read<std::uint8_t>(buffer + at_.buffer_of_kernel.offset));
    if (of_kernel != 0) {
      out.refused = "a registered buffer that belongs to a driver";
    }
  }
  return {};
}

// Threads that have ever used the ring.
Result<void> RingLook::look_at_tasks(const View& view, std::uint64_t file, Ring& out) const {
  const std::uint64_t end = view.address + at_.tasks.offset;
  std::uint64_t at = view.pointer(at_.tasks);
  for (std::size_t i = 0; at != end && i < kMostTasks; ++i) {
    const std::uint64_t node = at - at_.link.offset;
    FERRY_TRY(const auto task, memory_.read<std::uint64_t>(node + at_.link_task.offset));
    FERRY_TRY(const auto pid, memory_.read<std::int32_t>(task + at_.task_pid.offset));
    FERRY_TRY(const auto memory, memory_.read<std::uint64_t>(task + at_.task_memory.offset));
    if (memory != 0 && memory == view.pointer(at_.memory) && out.creator.value == 0) {
      out.creator = HostPid(pid);
    }
    FERRY_TRY(const auto rings, memory_.read<std::uint64_t>(task + at_.task_rings.offset));
    if (rings != 0) {
      FERRY_TRY(const auto registered,
                memory_.read_array<std::uint64_t>(rings + at_.registered.offset, at_.registered.size / 8));
      for (std::size_t n = 0; n < registered.size(); ++n) {
        if (registered[n] == file) {
          out.indices.push_back({HostPid(pid), static_cast<std::uint32_t>(n)});
        }
      }
    }
    FERRY_TRY(at, memory_.read<std::uint64_t>(at));
  }
  return {};
}

Result<Ring> RingLook::look(int fd) const {
  FERRY_TRY(const Object object, object_behind(fd));
  View view{object.content, {}};
  FERRY_TRY(view.bytes, memory_.read_array<std::byte>(object.content, at_.size));
  Ring out;
  out.setup_flags = view.word(at_.flags);
  out.sq_entries = view.word(at_.sq_entries);
  out.cq_entries = view.word(at_.cq_entries);
  out.sq_head = view.word(at_.sq_head);
  out.cq_tail = view.word(at_.cq_tail);
  if (view.pointer(at_.sq_array) != 0) {
    out.sq_array = static_cast<std::uint32_t>(view.pointer(at_.sq_array) - view.pointer(at_.rings));
  }
  out.rings_size = view.word(at_.region_pages) * kPage;
  out.sqes_size = view.word(at_.sq_pages) * kPage;
  const std::uint32_t allocated = view.word(at_.allocated);
  FERRY_TRY(const std::uint32_t free, count_free(view.pointer(at_.free_list), allocated));
  out.in_flight = allocated - free;
  out.overflow = view.pointer(at_.overflow) != object.content + at_.overflow.offset;
  out.clock = view.word(at_.clock);
  out.worker_limits[0] = view.word(at_.limits);
  out.worker_limits[1] = view.get<std::uint32_t>(at_.limits.offset + 4);
  bool issuer_has_ended = false;
  if (const std::uint64_t issuer = view.pointer(at_.submitter); issuer != 0) {
    FERRY_TRY(const auto tid, memory_.read<std::int32_t>(issuer + at_.task_pid.offset));
    FERRY_TRY(const auto memory, memory_.read<std::uint64_t>(issuer + at_.task_memory.offset));
    out.issuer = HostPid(tid);
    issuer_has_ended = memory == 0;  // its number may be another's by now
  }
  FERRY_CHECK(look_at_files(view, out));
  FERRY_CHECK(look_at_buffers(view, out));
  if (const std::uint64_t event = view.pointer(at_.event); event != 0) {
    FERRY_TRY(out.event, memory_.read<std::uint64_t>(event + at_.event_context.offset));
    FERRY_TRY(const auto async, memory_.read<std::uint32_t>(event + at_.event_async.offset));
    out.event_async = async != 0;
  }
  FERRY_CHECK(look_at_tasks(view, object.file, out));
  const struct {
    bool there;
    const char* what;
  } others[] = {
      {issuer_has_ended, "only one thread that may submit, which has ended,"},
      {view.pointer(at_.buffer_lists) != 0, "provided buffers"},
      {view.get<std::uint8_t>(at_.restricted.offset) != 0, "restrictions"},
      {view.pointer(at_.receivers) != 0, "queues of a network device"},
      {view.pointer(at_.personalities) != 0, "personalities"},
      {view.word(at_.parameter_pages) != 0, "a memory region"},
      {at_.napi_mode >= 0 && view.get<std::uint8_t>(static_cast<std::uint32_t>(at_.napi_mode)) != kNapiOff,
       "busy polling of network devices"},
  };
  for (const auto& other : others) {
    if (other.there) {
      out.refused = other.what;
    }
  }
  return out;
}

}  // namespace ferry::state::io_uring

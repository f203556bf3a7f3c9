#include "state/io_uring/io_uring.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <thread>

#include "base/log.h"
#include "state/io_uring/abi.h"
#include "state/io_uring/areas.h"
#include "state/io_uring/make.h"
#include "state/memory/memory.h"
#include "sys/file.h"
#include "tracee/deadline.h"

namespace ferry::state {
namespace io_uring {
namespace {

constexpr std::uint32_t kCarried =
    IORING_SETUP_IOPOLL | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP | IORING_SETUP_ATTACH_WQ | IORING_SETUP_R_DISABLED |
    IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SQE128 |
    IORING_SETUP_CQE32 | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | kNoSqArray | kHybridIoPoll;
constexpr std::chrono::seconds kIdleTime{1};

// The id of the ring that a mapping shows: each has an inode of its own.
Result<std::uint32_t> id_of(const sys::Mapping& mapping, const DumpTask& task, const DumpContext& context) {
  const dev_t device =
      ::makedev(static_cast<unsigned>(mapping.dev >> 20), static_cast<unsigned>(mapping.dev & 0xfffff));
  const auto found = context.files.of_inode(device, mapping.inode);
  if (found.empty()) {
    return fail(Kind::unsupported,
                "pid {} mapping {:x}-{:x}: an io_uring whose descriptor is closed cannot be carried over", task.pid,
                mapping.start, mapping.end);
  }
  return found.front().first;
}

// What stays as it is while the ring lives, or is not likely to change.
Result<void> check(const Ring& ring, const std::string& subject) {
  const struct {
    std::uint32_t flag;
    const char* what;
  } refused[] = {
      {IORING_SETUP_SQPOLL, "a thread of the kernel that submits (IORING_SETUP_SQPOLL)"},
      {kNoMmap, "memory of the program's own (IORING_SETUP_NO_MMAP)"},
  };
  for (const auto& r : refused) {
    if ((ring.setup_flags & r.flag) != 0) {
      return fail(Kind::unsupported, "{}: an io_uring with {} cannot be carried over", subject, r.what);
    }
  }
  if ((ring.setup_flags & ~kCarried) != 0) {
    return fail(Kind::unsupported, "{}: an io_uring that was set up with flags {:#x} cannot be carried over", subject,
                ring.setup_flags & ~kCarried);
  }
  if (ring.refused != nullptr) {
    return fail(Kind::unsupported, "{}: an io_uring with {} cannot be carried over", subject, ring.refused);
  }
  if (std::max(ring.sq_head, ring.cq_tail) > kMostSteps) {
    return fail(Kind::unsupported,
                "{}: the io_uring stands at {}, and a new one is brought there step by step, some ten million a "
                "second; more than {} cannot be carried over",
                subject, std::max(ring.sq_head, ring.cq_tail), kMostSteps);
  }
  if (ring.cq_tail > ring.sq_head && (ring.setup_flags & IORING_SETUP_DEFER_TASKRUN) != 0) {
    return fail(Kind::unsupported,
                "{}: an io_uring with IORING_SETUP_DEFER_TASKRUN and more completions ({}) than submissions ({}) "
                "cannot be carried over",
                subject, ring.cq_tail, ring.sq_head);
  }
  return {};
}

Result<void> check_idle(const Ring& ring, const std::string& subject) {
  if (ring.in_flight != 0) {
    return fail(Kind::unsupported, "{}: an io_uring with {} requests under way cannot be carried over", subject,
                ring.in_flight);
  }
  if (ring.overflow) {
    return fail(Kind::unsupported,
                "{}: an io_uring that has no room for its completions cannot be carried over; let the program fetch "
                "them",
                subject);
  }
  return {};
}

Result<void> open(RingLook& look, const std::string& subject) {
  auto opened = look.open();
  if (!opened.has_value()) {
    return fail(Kind::unsupported, "{}: what an io_uring holds cannot be told here, so it cannot be carried over: {}",
                subject, opened.error().message());
  }
  return {};
}

}  // namespace

bool is_ring(const std::string& link) { return link == "anon_inode:[io_uring]"; }

Result<void> preflight(HostPid pid, int fd, RingLook& look) {
  const std::string subject = fmt::format("pid {} fd {}", pid, fd);
  FERRY_CHECK(open(look, subject));
  const UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid.value, 0)));
  if (!pidfd) {
    return sys_fail(fmt::format("pidfd_open({})", pid));
  }
  const UniqueFd ours(static_cast<int>(::syscall(SYS_pidfd_getfd, pidfd.get(), fd, 0)));
  if (!ours) {
    return {};  // it was closed
  }
  if (const auto link = sys::read_link(fmt::format("/proc/self/fd/{}", ours.get()));
      !link.has_value() || !is_ring(*link)) {
    return {};
  }
  const tracee::Deadline deadline(kIdleTime);
  for (;;) {
    FERRY_TRY(const Ring ring, look.look(ours.get()).during("{}", subject));
    FERRY_CHECK(check(ring, subject));
    auto idle = check_idle(ring, subject);
    if (idle.has_value() || deadline.passed()) {
      if (const auto steps = std::max(ring.sq_head, ring.cq_tail); steps >= kStepsPerSecond) {
        log::warning(
            "{}: to bring a new io_uring to where this one stands ({}) will make the restore about {} s longer",
            subject, steps, steps / kStepsPerSecond);
      }
      return idle;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

}  // namespace io_uring

namespace {

using io_uring::Ring;

class IoUringKind : public FileKind {
 public:
  [[nodiscard]] std::string_view name() const override { return "io_uring"; }
  [[nodiscard]] pb::FdType type() const override { return pb::FD_FERRY_IO_URING; }
  [[nodiscard]] bool matches(const FdProbe& probe) const override { return io_uring::is_ring(probe.link); }

  void prepare(int /*proc*/, int /*fd*/, const std::string& link) override {
    if (io_uring::is_ring(link)) {
      (void)look_.open();  // collect() says why not
    }
  }

  Result<void> collect(const FdProbe& probe, DumpContext& context, pb::FileEntry& out) override {
    const std::string subject = probe.subject();
    FERRY_CHECK(io_uring::open(look_, subject));
    FERRY_TRY(Ring ring, look_.look(probe.ours).during("{}", subject));
    FERRY_CHECK(io_uring::check(ring, subject));
    FERRY_CHECK(io_uring::check_idle(ring, subject));
    FERRY_TRY(const io_uring::Areas areas,
              io_uring::Areas::map(probe.ours, ring.rings_size, ring.sqes_size, PROT_READ).during("{}", subject));
    pb::FerryIoUringEntry& entry = *out.mutable_ferry_io_uring();
    entry.set_id(out.id());
    entry.set_flags(probe.status_flags());
    entry.set_setup_flags(ring.setup_flags);
    entry.set_sq_entries(ring.sq_entries);
    entry.set_cq_entries(ring.cq_entries);
    entry.set_sq_head(ring.sq_head);
    entry.set_cq_tail(ring.cq_tail);
    entry.set_sq_array(ring.sq_array);
    entry.set_rings(areas.rings().data(), areas.rings().size());
    entry.set_sqes(areas.sqes().data(), areas.sqes().size());
    entry.set_pid(0);  // finish() finds it
    entry.set_tid(0);
    entry.set_fd(0);
    if (ring.clock != CLOCK_MONOTONIC) {
      entry.set_clock(ring.clock);
    }
    if (ring.worker_limits[0] != 0 || ring.worker_limits[1] != 0) {
      entry.add_worker_limits(ring.worker_limits[0]);
      entry.add_worker_limits(ring.worker_limits[1]);
    }
    FERRY_CHECK(collect_fown(probe, context, *entry.mutable_fown()));
    rings_.emplace(out.id(), Known{std::move(ring), &probe.task, subject});
    return {};
  }

  // Now all descriptions have their numbers, and fdinfo images say who has which.
  Result<void> finish(DumpContext& context) override {
    for (const image::Entry& e : context.set.entries({image::Type::files})) {
      auto& file = static_cast<pb::FileEntry&>(*e.message);
      const auto known = file.type() == type() ? rings_.find(file.id()) : rings_.end();
      if (known != rings_.end()) {
        pb::FerryIoUringEntry& entry = *file.mutable_ferry_io_uring();
        FERRY_CHECK(find_owner(known->second, context, entry));
        FERRY_CHECK(find_files(known->second, context, entry));
        FERRY_CHECK(find_buffers(known->second, context, entry));
        FERRY_CHECK(find_indices(known->second, context, entry));
      }
    }
    return find_mappings(context);
  }

  Result<UniqueFd> open(const pb::FileEntry& file, RestoreContext& context) override {
    const pb::FerryIoUringEntry& entry = file.ferry_io_uring();
    FERRY_TRY(UniqueFd fd, io_uring::make(entry, context));
    FERRY_CHECK(restore_status_flags(fd.get(), entry.flags()));
    return fd;
  }

  Result<void> connect(const pb::FileEntry& file, int fd, RestoreContext& context) override {
    opened_.push_back(&file.ferry_io_uring());
    return restore_fown(fd, file.ferry_io_uring().fown(), context);
  }

  // What takes the task's memory and descriptors.
  Result<void> complete(RestoreContext& context) override {
    for (const pb::FerryIoUringEntry* entry : opened_) {
      FERRY_CHECK(io_uring::register_buffers(*entry, context).during("io_uring {}", entry->id()));
      FERRY_CHECK(io_uring::register_indices(*entry, context).during("io_uring {}", entry->id()));
    }
    return {};
  }

 private:
  struct Known {
    Ring ring;
    DumpTask* task;  // with the first descriptor of it
    std::string subject;
  };
  struct Place {
    DumpTask* task = nullptr;
    const DumpThread* thread = nullptr;
  };

  static Place find_thread(const DumpContext& context, HostPid tid) {
    for (const auto& task : context.tasks) {
      for (const DumpThread& thread : task->threads) {
        if (tid.value != 0 && thread.tid == tid) {
          return {task.get(), &thread};
        }
      }
    }
    return {};
  }

  // Mappings were collected before any description had its number.
  static Result<void> find_mappings(const DumpContext& context) {
    for (const auto& task : context.tasks) {
      auto mapping = task->mappings.begin();
      for (int i = 0; !task->zombie && i < task->mm->vmas_size(); ++i) {
        pb::VmaEntry& vma = *task->mm->mutable_vmas(i);
        if (vma.status() != (memory::kRegular | memory::kFileShared) || vma.shmid() != 0) {
          continue;
        }
        mapping = std::find_if(mapping, task->mappings.end(), [&](const auto& m) { return m.start == vma.start(); });
        if (mapping != task->mappings.end() && io_uring::is_ring(mapping->name)) {
          FERRY_TRY(const std::uint32_t id, io_uring::id_of(*mapping, *task, context));
          vma.set_shmid(id);
        }
      }
    }
    return {};
  }

  // A descriptor of the description in the table of the task.
  static Result<std::uint32_t> find_descriptor(const Known& known, const DumpTask& task, std::uint32_t id,
                                               const DumpContext& context) {
    for (const auto* row : context.set.list<pb::FdinfoEntry>({image::Type::fdinfo, task.ids->files_id()})) {
      if (row->id() == id) {
        return row->fd();
      }
    }
    return fail(Kind::unsupported,
                "{}: pid {} uses the io_uring and has no descriptor of it, so it cannot be carried over", known.subject,
                task.pid);
  }

  static Result<void> find_owner(const Known& known, const DumpContext& context, pb::FerryIoUringEntry& entry) {
    const Ring& ring = known.ring;
    Place owner = find_thread(context, ring.issuer.value != 0 ? ring.issuer : ring.creator);
    if (owner.task == nullptr && ring.issuer.value != 0) {
      return fail(
          Kind::unsupported,
          "{}: the only thread that may submit to the io_uring ({}) is not in the tree, so it cannot be carried "
          "over",
          known.subject, ring.issuer);
    }
    if (owner.task == nullptr) {
      owner = {known.task, &known.task->threads.front()};
    }
    if (ring.issuer.value == 0) {
      owner.thread = &owner.task->threads.front();
    }
    entry.set_pid(owner.task->ns_pid.value);
    entry.set_tid(owner.thread->ns_tid.value);
    FERRY_TRY(const std::uint32_t fd, find_descriptor(known, *owner.task, entry.id(), context));
    entry.set_fd(fd);
    return {};
  }

  // The descriptions of the tree by the kernel's objects.
  struct Objects {
    std::map<std::uint64_t, std::uint32_t> files, contents;
  };
  Result<Objects> all_objects(const DumpContext& context) {
    Objects out;
    for (const auto* file : context.set.list<pb::FileEntry>({image::Type::files})) {
      if (const int ours = context.files.ours(file->id()); ours >= 0) {
        FERRY_TRY(const auto object, look_.object_behind(ours));
        out.files[object.file] = file->id();
        if (file->type() == pb::FD_EVENTFD) {
          out.contents[object.content] = file->id();
        }
      }
    }
    return out;
  }

  Result<void> find_files(const Known& known, const DumpContext& context, pb::FerryIoUringEntry& entry) {
    const Ring& ring = known.ring;
    if (ring.files.empty() && ring.event == 0) {
      return {};
    }
    FERRY_TRY(const Objects objects, all_objects(context));
    if (!ring.files.empty()) {
      entry.set_file_slots(static_cast<std::uint32_t>(ring.files.size()));
      entry.set_file_alloc_start(ring.file_alloc_start);
      entry.set_file_alloc_end(ring.file_alloc_end);
    }
    for (std::uint32_t slot = 0; slot < ring.files.size(); ++slot) {
      if (ring.files[slot].object == 0) {
        continue;
      }
      const auto found = objects.files.find(ring.files[slot].object);
      if (found == objects.files.end()) {
        return fail(Kind::unsupported,
                    "{}: file {} that is registered with the io_uring has no descriptor any more, so it cannot be "
                    "carried over",
                    known.subject, slot);
      }
      pb::FerryIoUringFile& file = *entry.add_files();
      file.set_slot(slot);
      file.set_file_id(found->second);
      if (ring.files[slot].tag != 0) {
        file.set_tag(ring.files[slot].tag);
      }
    }
    if (ring.event != 0) {
      const auto found = objects.contents.find(ring.event);
      if (found == objects.contents.end()) {
        return fail(Kind::unsupported,
                    "{}: the eventfd that is registered with the io_uring has no descriptor any more, so it cannot be "
                    "carried over",
                    known.subject);
      }
      entry.set_event_id(found->second);
      entry.set_event_async(ring.event_async);
    }
    return {};
  }

  // The kernel holds on to the pages that were there when a buffer was registered; where the program has unmapped
  // them since, nobody can put the buffer back.
  static Result<void> find_buffers(const Known& known, const DumpContext& context, pb::FerryIoUringEntry& entry) {
    const auto& buffers = known.ring.buffers;
    if (buffers.empty()) {
      return {};
    }
    const DumpTask* owner = nullptr;
    for (const auto& task : context.tasks) {
      owner = task->ns_pid.value == entry.pid() ? task.get() : owner;
    }
    entry.set_buffer_slots(static_cast<std::uint32_t>(buffers.size()));
    for (std::uint32_t slot = 0; slot < buffers.size(); ++slot) {
      if (buffers[slot].size == 0) {
        continue;
      }
      std::uint64_t covered = buffers[slot].address;
      for (const sys::Mapping& m : owner->mappings) {
        if (m.start <= covered && covered < m.end && (m.prot & PROT_WRITE) != 0) {
          covered = m.end;
        }
      }
      if (covered < buffers[slot].address + buffers[slot].size) {
        return fail(Kind::unsupported,
                    "{}: buffer {} that is registered with the io_uring is not in the memory of pid {} any more, so it "
                    "cannot be carried over",
                    known.subject, slot, owner->pid);
      }
      pb::FerryIoUringBuffer& buffer = *entry.add_buffers();
      buffer.set_slot(slot);
      buffer.set_address(buffers[slot].address);
      buffer.set_size(buffers[slot].size);
      if (buffers[slot].tag != 0) {
        buffer.set_tag(buffers[slot].tag);
      }
    }
    return {};
  }

  static Result<void> find_indices(const Known& known, const DumpContext& context, pb::FerryIoUringEntry& entry) {
    for (const Ring::Index& index : known.ring.indices) {
      const Place place = find_thread(context, index.tid);
      if (place.task == nullptr) {
        continue;  // a thread outside of the tree keeps what it has
      }
      FERRY_TRY(const std::uint32_t fd, find_descriptor(known, *place.task, entry.id(), context));
      pb::FerryIoUringIndex& out = *entry.add_indices();
      out.set_pid(place.task->ns_pid.value);
      out.set_tid(place.thread->ns_tid.value);
      out.set_index(index.index);
      out.set_fd(fd);
    }
    return {};
  }

  io_uring::RingLook look_;
  std::map<std::uint32_t, Known> rings_;              // checkpoint, by file id
  std::vector<const pb::FerryIoUringEntry*> opened_;  // restore
};

}  // namespace

std::unique_ptr<FileKind> make_io_uring_kind() { return std::make_unique<IoUringKind>(); }

}  // namespace ferry::state

#include "state/ipc/sysv.h"

#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <unistd.h>

#include <cstring>

#include "sys/as_user.h"
#include "sys/file.h"

namespace ferry::state::ipc {
namespace {

void describe(const ipc_perm& perm, int id, pb::IpcDescEntry& out) {
  out.set_key(static_cast<std::uint32_t>(perm.__key));
  out.set_uid(perm.uid);
  out.set_gid(perm.gid);
  out.set_cuid(perm.cuid);
  out.set_cgid(perm.cgid);
  out.set_mode(perm.mode);
  out.set_id(static_cast<std::uint32_t>(id));
}

void apply(const pb::IpcDescEntry& entry, ipc_perm& perm) {
  perm.uid = entry.uid();
  perm.gid = entry.gid();
  perm.mode = static_cast<decltype(perm.mode)>(entry.mode() & 0777);
}

// Makes an object with a chosen number (proc(5), /proc/sys/kernel/shm_next_id and its like).
template <class Get>
Result<void> make(int sysctl, const char* kind, const pb::IpcDescEntry& desc, Get get) {
  FERRY_CHECK(sys::write_file_at(sysctl, fmt::format("kernel/{}_next_id", kind), std::to_string(desc.id())));
  int id = -1;
  // The creator of an object is whoever makes it.
  FERRY_CHECK(sys::as_user({desc.cuid(), desc.cuid(), desc.cgid()}, [&]() -> Result<void> {
    id = get(static_cast<key_t>(desc.key()), IPC_CREAT | IPC_EXCL | static_cast<int>(desc.mode() & 0777));
    return id >= 0 ? Result<void>() : sys_fail(fmt::format("{}get(key {:#x})", kind, desc.key()));
  }));
  if (id != static_cast<int>(desc.id())) {
    return fail(Kind::os, "{} {} came out as number {}", kind, desc.id(), id);
  }
  return {};
}

// Whether the pages of a segment that is attached to be read are larger than `size`.  Nothing tells but that a mapping
// cannot be divided within a page (mprotect(2), EINVAL).
bool has_pages_above(void* attached, std::size_t size) {
  if (::mprotect(attached, size, PROT_NONE) != 0) {
    return true;
  }
  (void)::mprotect(attached, size, PROT_READ);
  return false;
}

// The flags of shmget(2) that make such a segment; 0 for one of ordinary pages.
std::uint32_t huge_page_flags(void* attached) {
  constexpr std::uint32_t kLogOf2MiB = 21, kLogOf1GiB = 30, kShift = 26;  // SHM_HUGE_SHIFT of <linux/shm.h>
  if (!has_pages_above(attached, 4096)) {
    return 0;
  }
  return SHM_HUGETLB | (has_pages_above(attached, std::size_t{1} << kLogOf2MiB) ? kLogOf1GiB : kLogOf2MiB) << kShift;
}

// After asking for what is at an index, which may be unused.
bool is_unused() { return errno == EINVAL || errno == EIDRM; }

union SemArgument {
  int value;
  semid_ds* status;
  unsigned short* values;
  seminfo* info;
};

}  // namespace

Result<Attached> Attached::segment(std::uint32_t id, bool read_only) {
  void* address = ::shmat(static_cast<int>(id), nullptr, read_only ? SHM_RDONLY : 0);
  if (address == reinterpret_cast<void*>(-1)) {
    return sys_fail(fmt::format("shmat({})", id));
  }
  return Attached(address);
}

Attached::~Attached() {
  if (address_ != nullptr) {
    ::shmdt(address_);
  }
}

Result<std::vector<Segment>> read_segments() {
  std::vector<Segment> out;
  shm_info info{};
  const int last = ::shmctl(0, SHM_INFO, reinterpret_cast<shmid_ds*>(&info));
  if (last < 0) {
    return sys_fail("shmctl(SHM_INFO)");
  }
  for (int index = 0; index <= last; ++index) {
    shmid_ds status{};
    const int id = ::shmctl(index, SHM_STAT, &status);
    if (id < 0) {
      if (is_unused()) {
        continue;
      }
      return sys_fail(fmt::format("shmctl({}, SHM_STAT)", index));
    }
    Segment segment;
    describe(status.shm_perm, id, *segment.entry.mutable_desc());
    segment.entry.set_size(status.shm_segsz);
    segment.attached = status.shm_nattch;
    segment.entry.set_in_pagemaps(false);
    FERRY_TRY(const Attached attached, Attached::segment(static_cast<std::uint32_t>(id), true));
    if (const std::uint32_t huge = huge_page_flags(attached.address()); huge != 0) {
      segment.entry.set_hugetlb_flag(huge);
    }
    segment.content.assign(static_cast<const char*>(attached.address()), status.shm_segsz);
    out.push_back(std::move(segment));
  }
  return out;
}

Result<std::vector<Semaphores>> read_semaphores() {
  std::vector<Semaphores> out;
  seminfo info{};
  const int last = ::semctl(0, 0, SEM_INFO, SemArgument{.info = &info});
  if (last < 0) {
    return sys_fail("semctl(SEM_INFO)");
  }
  for (int index = 0; index <= last; ++index) {
    semid_ds status{};
    const int id = ::semctl(index, 0, SEM_STAT, SemArgument{.status = &status});
    if (id < 0) {
      if (is_unused()) {
        continue;
      }
      return sys_fail(fmt::format("semctl({}, SEM_STAT)", index));
    }
    Semaphores set;
    describe(status.sem_perm, id, *set.entry.mutable_desc());
    set.entry.set_nsems(static_cast<std::uint32_t>(status.sem_nsems));
    std::vector<unsigned short> values(status.sem_nsems);
    if (::semctl(id, 0, GETALL, SemArgument{.values = values.data()}) < 0) {
      return sys_fail(fmt::format("semctl({}, GETALL)", id));
    }
    set.values.assign(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(unsigned short));
    out.push_back(std::move(set));
  }
  return out;
}

Result<std::vector<Queue>> read_queues() {
  std::vector<Queue> out;
  msginfo info{};
  const int last = ::msgctl(0, MSG_INFO, reinterpret_cast<msqid_ds*>(&info));
  if (last < 0) {
    return sys_fail("msgctl(MSG_INFO)");
  }
  for (int index = 0; index <= last; ++index) {
    msqid_ds status{};
    const int id = ::msgctl(index, MSG_STAT, &status);
    if (id < 0) {
      if (is_unused()) {
        continue;
      }
      return sys_fail(fmt::format("msgctl({}, MSG_STAT)", index));
    }
    Queue queue;
    describe(status.msg_perm, id, *queue.entry.mutable_desc());
    queue.entry.set_qbytes(static_cast<std::uint32_t>(status.msg_qbytes));
    queue.entry.set_qnum(static_cast<std::uint32_t>(status.msg_qnum));
    // A message cannot be longer than all of them.
    std::vector<char> buffer(sizeof(long) + status.__msg_cbytes);
    for (msgqnum_t at = 0; at < status.msg_qnum; ++at) {
      const ssize_t size =
          ::msgrcv(id, buffer.data(), status.__msg_cbytes, static_cast<long>(at), IPC_NOWAIT | MSG_COPY);
      if (size < 0) {
        return sys_fail(fmt::format("msgrcv({}, copy of message {})", id, at));
      }
      long type = 0;
      std::memcpy(&type, buffer.data(), sizeof type);
      Queue::Message message;
      message.head.set_mtype(static_cast<std::uint64_t>(type));
      message.head.set_msize(static_cast<std::uint32_t>(size));
      message.text.assign(buffer.data() + sizeof type, static_cast<std::size_t>(size));
      queue.messages.push_back(std::move(message));
    }
    out.push_back(std::move(queue));
  }
  return out;
}

Result<void> make_segment(int sysctl, const pb::IpcShmEntry& entry) {
  const auto get = [&](key_t key, int flags) {
    return ::shmget(key, entry.size(), flags | static_cast<int>(entry.hugetlb_flag()));
  };
  FERRY_CHECK(make(sysctl, "shm", entry.desc(), get));
  const int id = static_cast<int>(entry.desc().id());
  shmid_ds status{};
  apply(entry.desc(), status.shm_perm);
  if (::shmctl(id, IPC_SET, &status) != 0) {
    return sys_fail(fmt::format("shmctl({}, IPC_SET)", id));
  }
  if ((entry.desc().mode() & SHM_LOCKED) != 0 && ::shmctl(id, SHM_LOCK, nullptr) != 0) {
    return sys_fail(fmt::format("shmctl({}, SHM_LOCK)", id));
  }
  return {};
}

Result<void> make_semaphores(int sysctl, const Semaphores& set) {
  const std::size_t count = set.entry.nsems();
  if (set.values.size() < count * sizeof(unsigned short)) {
    return fail(Kind::corrupt, "semaphore set {} has fewer values than semaphores", set.entry.desc().id());
  }
  const auto get = [&](key_t key, int flags) { return ::semget(key, static_cast<int>(count), flags); };
  FERRY_CHECK(make(sysctl, "sem", set.entry.desc(), get));
  const int id = static_cast<int>(set.entry.desc().id());
  std::vector<unsigned short> values(count);
  std::memcpy(values.data(), set.values.data(), count * sizeof(unsigned short));
  if (::semctl(id, 0, SETALL, SemArgument{.values = values.data()}) < 0) {
    return sys_fail(fmt::format("semctl({}, SETALL)", id));
  }
  semid_ds status{};
  apply(set.entry.desc(), status.sem_perm);
  if (::semctl(id, 0, IPC_SET, SemArgument{.status = &status}) < 0) {
    return sys_fail(fmt::format("semctl({}, IPC_SET)", id));
  }
  return {};
}

Result<void> make_queue(int sysctl, const Queue& queue) {
  const auto get = [](key_t key, int flags) { return ::msgget(key, flags); };
  FERRY_CHECK(make(sysctl, "msg", queue.entry.desc(), get));
  const int id = static_cast<int>(queue.entry.desc().id());
  msqid_ds status{};
  apply(queue.entry.desc(), status.msg_perm);
  status.msg_qbytes = queue.entry.qbytes();
  if (::msgctl(id, IPC_SET, &status) != 0) {
    return sys_fail(fmt::format("msgctl({}, IPC_SET)", id));
  }
  for (const Queue::Message& message : queue.messages) {
    const long type = static_cast<long>(message.head.mtype());
    std::vector<char> buffer(sizeof type + message.text.size());
    std::memcpy(buffer.data(), &type, sizeof type);
    std::memcpy(buffer.data() + sizeof type, message.text.data(), message.text.size());
    if (::msgsnd(id, buffer.data(), message.text.size(), IPC_NOWAIT) != 0) {
      return sys_fail(fmt::format("msgsnd({})", id));
    }
  }
  return {};
}

Result<void> remove_segment(std::uint32_t id) {
  if (::shmctl(static_cast<int>(id), IPC_RMID, nullptr) != 0) {
    return sys_fail(fmt::format("shmctl({}, IPC_RMID)", id));
  }
  return {};
}

Result<void> remove_all() {
  // `stat`: the number of the object at an index.  `remove`: by number.
  const auto all = [](int last, const char* kind, const auto& stat, const auto& remove) -> Result<void> {
    for (int index = 0; index <= last; ++index) {
      const int id = stat(index);
      if (id < 0 ? !is_unused() : remove(id) != 0) {
        return sys_fail(fmt::format("removing {} {} of the namespace", kind, id < 0 ? index : id));
      }
    }
    return {};
  };
  shm_info segments{};
  seminfo semaphores{};
  msginfo queues{};
  shmid_ds of_segment{};
  semid_ds of_semaphores{};
  msqid_ds of_queue{};
  FERRY_CHECK(all(
      ::shmctl(0, SHM_INFO, reinterpret_cast<shmid_ds*>(&segments)), "shared memory segment",
      [&](int index) { return ::shmctl(index, SHM_STAT, &of_segment); },
      [](int id) { return ::shmctl(id, IPC_RMID, nullptr); }));
  FERRY_CHECK(all(
      ::semctl(0, 0, SEM_INFO, SemArgument{.info = &semaphores}), "semaphore set",
      [&](int index) { return ::semctl(index, 0, SEM_STAT, SemArgument{.status = &of_semaphores}); },
      [](int id) { return ::semctl(id, 0, IPC_RMID); }));
  return all(
      ::msgctl(0, MSG_INFO, reinterpret_cast<msqid_ds*>(&queues)), "message queue",
      [&](int index) { return ::msgctl(index, MSG_STAT, &of_queue); },
      [](int id) { return ::msgctl(id, IPC_RMID, nullptr); });
}

}  // namespace ferry::state::ipc

#include <fcntl.h>
#include <linux/prctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <tuple>

#include "state/aio/aio.h"
#include "state/io_uring/io_uring.h"
#include "state/memfd/memfd.h"
#include "state/memory/memory.h"
#include "state/vdso/vdso.h"
#include "sys/file.h"
#include "sys/pagemap.h"

namespace ferry::state::memory {
namespace {

constexpr std::size_t kCriuAuxvWords = 44;

// proc(5), VmFlags: the advice that can be given again with madvise(2).
struct Advice {
  const char* flag;
  int advice;
};
constexpr Advice kAdvice[] = {{"sr", MADV_SEQUENTIAL}, {"rr", MADV_RANDOM},    {"dc", MADV_DONTFORK},
                              {"dd", MADV_DONTDUMP},   {"mg", MADV_MERGEABLE}, {"hg", MADV_HUGEPAGE},
                              {"nh", MADV_NOHUGEPAGE}, {"wf", MADV_WIPEONFORK}};

struct Refused {
  const char* flag;
  const char* why;
};
constexpr Refused kRefused[] = {{"um", "memory that userfaultfd watches"},
                                {"ss", "a shadow stack"},
                                {"io", "memory of a device"},
                                {"pf", "memory of a device"}};

std::string subject_of(const DumpTask& task, const sys::Mapping& m) {
  return fmt::format("pid {} mapping {:x}-{:x} ({})", task.pid, m.start, m.end, m.name.empty() ? "anonymous" : m.name);
}

bool is_kernel_mapping(const sys::Mapping& m) {
  return m.name == "[vdso]" || m.name == "[vvar]" || m.name == "[vvar_vclock]" || m.name == "[vsyscall]";
}

class Collector {
 public:
  Collector(DumpTask& task, DumpContext& context) : task_(task), context_(context) {}

  Result<void> run() {
    for (const sys::Mapping& m : task_.mappings) {
      if (m.name == "[uprobes]") {
        FERRY_CHECK(skip_uprobes(m));
        continue;
      }
      if (!is_kernel_mapping(m)) {
        for (const Refused& r : kRefused) {
          if (m.has_flag(r.flag)) {
            return fail(Kind::unsupported, "{}: {} cannot be carried over", subject_of(task_, m), r.why);
          }
        }
        FERRY_CHECK(check_protection(m));
      }
      FERRY_CHECK(one(m).during("saving the mappings of pid {}", task_.pid));
    }
    return {};
  }

 private:
  // Where the kernel puts the instructions that a breakpoint stands for.  It does so again at the next hit.
  Result<void> skip_uprobes(const sys::Mapping& m) {
    if (!context_.options.allow_uprobes) {
      return fail(
          Kind::unsupported,
          "{}: a debugger or tracing tool has uprobes in it; end that first, or give --allow-uprobes if they are "
          "there at the restore as well",
          subject_of(task_, m));
    }
    pb::VmaEntry& vma = begin(m);
    vma.set_flags(MAP_PRIVATE | MAP_ANONYMOUS);
    vma.set_status(kUprobes | kAnonPrivate);
    return {};
  }

  // With what every entry has.
  pb::VmaEntry& begin(const sys::Mapping& m) {
    pb::VmaEntry& vma = *task_.mm->add_vmas();
    vma.set_start(m.start);
    vma.set_end(m.end);
    vma.set_pgoff(0);
    vma.set_shmid(0);
    vma.set_prot(static_cast<std::uint32_t>(m.prot));
    vma.set_fd(-1);
    vma.set_flags(0);
    return vma;
  }

  // Asynchronous write protection is only a way to look at a process, ours among others: what it holds is the
  // same with and without.  A process that does it to itself is refused for its descriptor.
  Result<void> check_protection(const sys::Mapping& m) {
    if (!m.has_flag("uw")) {
      return {};
    }
    if (!pagemap_) {
      FERRY_TRY(pagemap_, sys::open_at(task_.proc.get(), "pagemap", O_RDONLY));
    }
    FERRY_TRY(const bool asynchronous, sys::is_watched(pagemap_.get(), m.start));
    if (!asynchronous) {
      return fail(Kind::unsupported, "{}: memory that userfaultfd watches cannot be carried over",
                  subject_of(task_, m));
    }
    return {};
  }

  Result<void> one(const sys::Mapping& m) {
    auto& vmas = *task_.mm->mutable_vmas();
    // The kernel splits its data pages into two mappings; CRIU's format has one.
    if ((m.name == "[vvar_vclock]" || m.name == "[vvar]") && !vmas.empty() &&
        (vmas[vmas.size() - 1].status() & kVvar) != 0 && vmas[vmas.size() - 1].end() == m.start) {
      vmas[vmas.size() - 1].set_end(m.end);
      return {};
    }
    pb::VmaEntry& vma = begin(m);
    std::uint32_t flags = m.shared ? MAP_SHARED : MAP_PRIVATE;
    flags |= m.has_flag("gd") ? MAP_GROWSDOWN : 0U;
    flags |= m.has_flag("nr") ? MAP_NORESERVE : 0U;
    flags |= m.has_flag("lo") ? MAP_LOCKED : 0U;
    std::uint64_t advice = 0;
    for (const Advice& a : kAdvice) {
      if (m.has_flag(a.flag)) {
        advice |= std::uint64_t{1} << a.advice;
      }
    }
    if (advice != 0) {
      vma.set_madv(advice);
    }
    if (m.has_flag("sl") && !is_kernel_mapping(m)) {
      vma.set_ferry_sealed(true);
    }
    if (m.has_flag("dp")) {
      vma.set_ferry_droppable(true);
    }
    if (m.has_flag("lf")) {
      vma.set_ferry_lock_on_fault(true);
    }
    if (!m.shared && m.has_flag("ac") && (m.prot & PROT_WRITE) == 0) {
      vma.set_ferry_was_writable(true);
    }
    if (is_kernel_mapping(m)) {
      flags |= MAP_ANONYMOUS;
      vma.set_status(m.name == "[vdso]"       ? kRegular | kVdso | kAnonPrivate
                     : m.name == "[vsyscall]" ? kVsyscall | kAnonPrivate
                                              : kRegular | kVvar | kAnonPrivate);
    } else if (m.inode == 0 && !m.shared) {
      flags |= MAP_ANONYMOUS;
      vma.set_status(kRegular | kAnonPrivate | (m.name == "[heap]" ? std::uint32_t{kHeap} : 0U));
      constexpr std::string_view kNamed = "[anon:";
      if (m.name.starts_with(kNamed)) {
        vma.set_ferry_name(m.name.substr(kNamed.size(), m.name.size() - kNamed.size() - 1));
      }
    } else {
      FERRY_CHECK(backed(m, vma));
    }
    vma.set_flags(flags | vma.flags());
    return {};
  }

  // By a file, or by shared memory that looks like one.
  Result<void> backed(const sys::Mapping& m, pb::VmaEntry& vma) {
    vma.set_pgoff(m.offset);
    const std::string range = fmt::format("map_files/{:x}-{:x}", m.start, m.end);
    if (m.name.starts_with("/SYSV") && m.deleted) {
      // ipc/shm.c: the inode number of a segment's file is its id.
      vma.set_shmid(m.inode);
      vma.set_status(kRegular | kSysvIpc | kAnonShared);
      return {};
    }
    if (!m.shared && m.name == "/anon_hugepage") {
      FERRY_TRY(const UniqueFd file, sys::open_at(task_.proc.get(), range, O_RDONLY));
      FERRY_TRY(const std::uint32_t size, memfd::huge_page_flag(file.get()).during("{}", subject_of(task_, m)));
      vma.set_pgoff(0);
      vma.set_status(kRegular | kAnonPrivate);
      vma.set_flags(MAP_ANONYMOUS | MAP_HUGETLB | size);
      return {};
    }
    if (aio::is_ring(m)) {
      vma.set_pgoff(0);
      vma.set_status(kAioRing | kAnonShared);
      return aio::collect(task_, m);
    }
    if (m.shared && m.name.starts_with("socket:")) {
      vma.set_shmid(m.inode);  // until the sockets are known, and the room of packet sockets puts the file in its place
      vma.set_status(kRegular | kSocket);
      return {};
    }
    if (io_uring::is_ring(m.name)) {
      vma.set_status(kRegular | kFileShared);  // whose it is, io_uring finds out when all descriptors are known
      return {};
    }
    if (m.name.starts_with("anon_inode:") || m.name.starts_with("socket:")) {
      return fail(Kind::unsupported, "{}: this kind of mapping cannot be carried over", subject_of(task_, m));
    }
    // "mw": the mapping may become writable, so the file was opened for writing.
    const std::uint32_t mode = m.shared && m.has_flag("mw") ? O_RDWR : O_RDONLY;
    // A library is mapped in several pieces: one look at its file is enough.
    std::uint32_t& known = files_[{m.dev, m.inode, m.name, m.deleted, m.shared, mode}];
    if (known != 0) {
      vma.set_shmid(known);
      vma.set_fdflags(mode);
      vma.set_status(kRegular | (m.shared ? kFileShared : kFilePrivate));
      return {};
    }
    FERRY_TRY(const auto link, sys::read_link_at(task_.proc.get(), range));
    if (memfd::is_memfd(link) && (m.shared || link.starts_with("/memfd:"))) {
      FERRY_TRY(const std::uint32_t id, memfd::add_mapping(context_, task_, m));
      vma.set_shmid(id);
      vma.set_status(kRegular | kMemfd | (m.shared ? kFileShared : kFilePrivate));
      vma.set_fdflags(m.shared && !m.has_flag("mw") ? O_RDONLY : O_RDWR);
      return {};
    }
    if (m.has_flag("ht")) {
      return fail(Kind::unsupported, "{}: a file of huge pages (hugetlbfs) cannot be carried over",
                  subject_of(task_, m));
    }
    FERRY_TRY(const UniqueFd file, sys::open_at(task_.proc.get(), range, O_PATH));
    FERRY_TRY(const auto st, sys::stat_fd(file.get(), link));
    if (!S_ISREG(st.st_mode) && link != "/dev/zero") {
      return fail(Kind::unsupported, "{}: memory of a device cannot be carried over", subject_of(task_, m));
    }
    FERRY_TRY(const std::uint32_t id, context_.files.add_path(context_, task_, file.get(), link, mode));
    known = id;
    vma.set_shmid(id);
    vma.set_fdflags(mode);
    vma.set_status(kRegular | (m.shared ? kFileShared : kFilePrivate));
    return {};
  }

  DumpTask& task_;
  DumpContext& context_;
  UniqueFd pagemap_;  // opened when it is needed
  using File = std::tuple<std::uint64_t, std::uint64_t, std::string, bool, bool, std::uint32_t>;
  std::map<File, std::uint32_t> files_;  // device, inode, name, deleted, shared, mode: id
};

Result<void> collect_exe(DumpTask& task, DumpContext& context) {
  FERRY_TRY(const UniqueFd exe, sys::open_at(task.proc.get(), "exe", O_PATH));
  FERRY_TRY(const auto link, sys::read_link_at(task.proc.get(), "exe"));
  FERRY_TRY(const std::uint32_t id, context.files.add_path(context, task, exe.get(), link, O_RDONLY));
  task.mm->set_exe_file_id(id);
  return {};
}

Result<void> collect_auxv(DumpTask& task) {
  FERRY_TRY(const auto text, sys::read_file_at(task.proc.get(), "auxv"));
  std::vector<std::uint64_t> words(text.size() / sizeof(std::uint64_t));
  std::memcpy(words.data(), text.data(), words.size() * sizeof(std::uint64_t));
  for (std::size_t i = 0; i < words.size(); ++i) {
    task.mm->add_ferry_auxv(words[i]);
    if (i < kCriuAuxvWords) {
      task.mm->add_mm_saved_auxv(words[i]);
    }
  }
  return {};
}

}  // namespace

Answers ask(DumpTask& task, tracee::Batch& batch) {
  const auto brk = batch.may(SYS_brk, {0});
  const auto dumpable = batch.may(SYS_prctl, {PR_GET_DUMPABLE, 0, 0, 0, 0});
  // What mlockall(2) says of mappings to come shows at a new one: in memory at once (mincore(2)), unless only
  // on fault, and locked (msync(2), MS_INVALIDATE).
  const auto page = batch.may(SYS_mmap, {0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0});
  const auto resident = batch.room(1);
  batch.may(SYS_mincore, {page, 4096, resident});
  const auto locked = batch.may(SYS_msync, {page, 4096, MS_ASYNC | MS_INVALIDATE});
  batch.may(SYS_munmap, {page, 4096});
  return [&task, brk, dumpable, page, resident, locked](const tracee::Replies& replies) -> Result<void> {
    if (replies[page] == -EAGAIN || replies[locked] == -EBUSY) {  // EAGAIN: it would have been more than may be locked
      const bool at_once = replies[page] == -EAGAIN || (replies.object<unsigned char>(resident) & 1) != 0;
      task.mm->set_ferry_lock_future(MCL_FUTURE | (at_once ? 0U : MCL_ONFAULT));
    }
    task.mm->set_mm_brk(static_cast<std::uint64_t>(replies[brk]));
    task.mm->set_dumpable(static_cast<std::int32_t>(replies[dumpable]));
    return {};
  };
}

Result<void> collect(DumpTask& task, DumpContext& context) {
  pb::MmEntry& mm = *task.mm;
  mm.set_mm_start_code(task.stat.start_code);
  mm.set_mm_end_code(task.stat.end_code);
  mm.set_mm_start_data(task.stat.start_data);
  mm.set_mm_end_data(task.stat.end_data);
  mm.set_mm_start_stack(task.stat.start_stack);
  mm.set_mm_start_brk(task.stat.start_brk);
  mm.set_mm_arg_start(task.stat.arg_start);
  mm.set_mm_arg_end(task.stat.arg_end);
  mm.set_mm_env_start(task.stat.env_start);
  mm.set_mm_env_end(task.stat.env_end);
  FERRY_CHECK(collect_exe(task, context).during("saving the program of pid {}", task.pid));
  FERRY_CHECK(collect_auxv(task));
  if (std::any_of(task.mappings.begin(), task.mappings.end(),
                  [](const sys::Mapping& m) { return m.name == "[vdso]"; })) {
    mm.set_ferry_vdso_build(vdso::build_of(vdso::own()));
  }
  return Collector(task, context).run();
}

}  // namespace ferry::state::memory

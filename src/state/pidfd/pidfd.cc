#include "state/pidfd/pidfd.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <map>

#include "state/proc_file/dead_process.h"

namespace ferry::state {
namespace {

constexpr std::uint32_t kThread = O_EXCL;  // PIDFD_THREAD, Linux 6.9: of a thread, not of a process

Result<UniqueFd> open_pidfd(pid_t pid, std::uint32_t flags) {
  UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_open, pid, flags & (kThread | O_NONBLOCK))));
  if (!fd) {
    return sys_fail(fmt::format("pidfd_open({})", pid));
  }
  return fd;
}

class PidfdKind : public FileKind {
 public:
  ~PidfdKind() override { reap(); }
  [[nodiscard]] std::string_view name() const override { return "pidfd"; }
  [[nodiscard]] pb::FdType type() const override { return pb::FD_PIDFD; }
  [[nodiscard]] bool matches(const FdProbe& probe) const override {
    return probe.link == "anon_inode:[pidfd]" || probe.link.starts_with("pidfd:[");
  }

  // pidfd_open(2): fdinfo has the pid as the reader's pid namespace sees it, -1 once it is reaped.
  Result<void> collect(const FdProbe& probe, DumpContext& context, pb::FileEntry& out) override {
    const auto text = probe.info.get("Pid");
    int pid = 0;
    if (!text || std::from_chars(text->data(), text->data() + text->size(), pid).ec != std::errc()) {
      return fail(Kind::corrupt, "{}: no Pid in its fdinfo", probe.subject());
    }
    pb::PidfdEntry& entry = *out.mutable_pidfd();
    entry.set_id(out.id());
    entry.set_ino(static_cast<std::uint32_t>(probe.stat.st_ino));
    entry.set_flags(probe.status_flags() & ~static_cast<std::uint32_t>(O_ACCMODE));
    FERRY_TRY(const std::int32_t inner, inner_pid(HostPid(pid), probe, context));
    entry.set_nspid(inner);
    return collect_fown(probe, context, *entry.mutable_fown());
  }

  Result<UniqueFd> open(const pb::FileEntry& file, RestoreContext& context) override {
    const pb::PidfdEntry& entry = file.pidfd();
    if (entry.nspid() < 0) {
      return open_dead(entry, context);
    }
    for (const auto& task : context.tasks) {
      if (task->ns_pid().value == entry.nspid()) {
        return open_pidfd(task->pid.value, entry.flags());
      }
      for (const RestoreThread& thread : task->threads) {
        if (thread.ns_tid.value == entry.nspid() && (entry.flags() & kThread) != 0 && thread.tid.value != 0) {
          return open_pidfd(thread.tid.value, entry.flags());
        }
      }
    }
    return fail(Kind::unsupported, "a pidfd refers to task {}, which does not exist yet or is not in the set",
                entry.nspid());
  }

  Result<void> connect(const pb::FileEntry& file, int fd, RestoreContext& context) override {
    return restore_fown(fd, file.pidfd().fown(), context);
  }

  Result<void> complete(RestoreContext&) override {
    reap();
    return {};
  }

 private:
  static Result<std::int32_t> inner_pid(HostPid pid, const FdProbe& probe, const DumpContext& context) {
    if (pid.value < 0) {
      return -1;
    }
    for (const auto& task : context.tasks) {
      if (task->pid == pid) {
        return task->ns_pid.value;
      }
      for (const DumpThread& thread : task->threads) {
        if (thread.tid == pid) {
          return thread.ns_tid.value;
        }
      }
    }
    return fail(Kind::unsupported, "{}: it refers to pid {}, which is not part of the tree", probe.subject(), pid);
  }

  // Of a process that is dead and reaped: one that we make for the purpose, the same one for all descriptors
  // of that process.  It is reaped when all of them are open.
  Result<UniqueFd> open_dead(const pb::PidfdEntry& entry, RestoreContext& context) {
    auto known = stand_ins_.find(entry.ino());
    if (known == stand_ins_.end()) {
      // In the tree's pid namespace: pidfd_send_signal(2) tells processes of others apart (EINVAL).
      FERRY_TRY(const pid_t child, proc_file::make_sleeper(context.root().pid, 0));
      known = stand_ins_.emplace(entry.ino(), child).first;
    }
    return open_pidfd(known->second, entry.flags() & ~kThread);
  }

  void reap() {
    for (const auto& [ino, child] : stand_ins_) {
      ::kill(child, SIGKILL);
      while (::waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
      }
    }
    stand_ins_.clear();
  }

  std::map<std::uint32_t, pid_t> stand_ins_;  // restore: by the inode of the descriptor
};

}  // namespace

std::unique_ptr<FileKind> make_pidfd_kind() { return std::make_unique<PidfdKind>(); }

}  // namespace ferry::state

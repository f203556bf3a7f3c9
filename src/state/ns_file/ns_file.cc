#include "state/ns_file/ns_file.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <linux/nsfs.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/vfs.h>

#include "sys/file.h"

namespace ferry::state {
namespace {

using Ids = pb::TaskKobjIdsEntry;
struct NamespaceKind {
  int flag;
  const char* file;  // below /proc/PID/ns
  bool (Ids::*has)() const;
  std::uint32_t (Ids::*id)() const;
};
constexpr NamespaceKind kKinds[] = {
    {CLONE_NEWPID, "pid", &Ids::has_pid_ns_id, &Ids::pid_ns_id},
    {CLONE_NEWNET, "net", &Ids::has_net_ns_id, &Ids::net_ns_id},
    {CLONE_NEWIPC, "ipc", &Ids::has_ipc_ns_id, &Ids::ipc_ns_id},
    {CLONE_NEWUTS, "uts", &Ids::has_uts_ns_id, &Ids::uts_ns_id},
    {CLONE_NEWNS, "mnt", &Ids::has_mnt_ns_id, &Ids::mnt_ns_id},
    {CLONE_NEWUSER, "user", &Ids::has_user_ns_id, &Ids::user_ns_id},
    {CLONE_NEWCGROUP, "cgroup", &Ids::has_cgroup_ns_id, &Ids::cgroup_ns_id},
    {0x80 /* CLONE_NEWTIME */, "time", &Ids::has_time_ns_id, &Ids::time_ns_id},
};

class NsFileKind : public FileKind {
 public:
  [[nodiscard]] std::string_view name() const override { return "namespace"; }
  [[nodiscard]] pb::FdType type() const override { return pb::FD_NS; }

  [[nodiscard]] bool matches(const FdProbe& probe) const override {
    struct statfs fs {};
    return S_ISREG(probe.stat.st_mode) && probe.link.ends_with(']') && probe.link.find(":[") != std::string::npos &&
           ::fstatfs(probe.ours, &fs) == 0 && fs.f_type == NSFS_MAGIC;
  }

  Result<void> collect(const FdProbe& probe, DumpContext& context, pb::FileEntry& out) override {
    const int flag = ::ioctl(probe.ours, NS_GET_NSTYPE);
    if (flag < 0) {
      return sys_fail(fmt::format("ioctl({}, NS_GET_NSTYPE)", probe.subject()));
    }
    for (const NamespaceKind& kind : kKinds) {
      if (kind.flag != flag) {
        continue;
      }
      for (const auto& task : context.tasks) {
        if (task->zombie || task->ids == nullptr || !(task->ids->*kind.has)()) {
          continue;
        }
        FERRY_TRY(const UniqueFd theirs, sys::open_at(task->proc.get(), fmt::format("ns/{}", kind.file), O_RDONLY));
        FERRY_TRY(const struct stat st, sys::stat_fd(theirs.get(), kind.file));
        if (st.st_ino == probe.stat.st_ino && st.st_dev == probe.stat.st_dev) {
          pb::NsFileEntry& entry = *out.mutable_nsf();
          entry.set_id(out.id());
          entry.set_ns_id((task->ids->*kind.id)());
          entry.set_ns_cflag(static_cast<std::uint32_t>(flag));
          entry.set_flags(probe.status_flags());
          return {};
        }
      }
    }
    return fail(Kind::unsupported, "{}: no task of the tree is in this namespace", probe.subject());
  }

  Result<UniqueFd> open(const pb::FileEntry& file, RestoreContext& context) override {
    const pb::NsFileEntry& entry = file.nsf();
    for (const NamespaceKind& kind : kKinds) {
      if (static_cast<std::uint32_t>(kind.flag) != entry.ns_cflag()) {
        continue;
      }
      for (const auto& task : context.tasks) {
        if (task->ids != nullptr && (task->ids->*kind.has)() && (task->ids->*kind.id)() == entry.ns_id()) {
          return sys::open(fmt::format("/proc/{}/ns/{}", task->pid, kind.file), O_RDONLY);
        }
      }
    }
    return fail(Kind::corrupt, "no task of the set is in namespace {} (kind {:#x})", entry.ns_id(), entry.ns_cflag());
  }
};

}  // namespace

std::unique_ptr<FileKind> make_ns_file_kind() { return std::make_unique<NsFileKind>(); }

}  // namespace ferry::state

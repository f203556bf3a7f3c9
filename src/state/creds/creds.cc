#include "state/creds/creds.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <array>

#include "state/userns/userns.h"
#include "sys/file.h"

namespace ferry::state::creds {
namespace {

// What capset(2) takes in version 3: two 32-bit halves.
struct CapabilityData {
  __user_cap_data_struct low, high;
};
static_assert(sizeof(CapabilityData) == 24);

struct Caps {
  std::uint64_t effective = 0, permitted = 0, inheritable = 0;
  auto operator<=>(const Caps&) const = default;
};

void put(google::protobuf::RepeatedField<std::uint32_t>& words, std::uint64_t set) {
  words.Clear();
  words.Add(static_cast<std::uint32_t>(set));
  words.Add(static_cast<std::uint32_t>(set >> 32));
}

void set_capabilities(const Caps& caps, tracee::Batch& batch) {
  const __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  const auto low = [](std::uint64_t set) { return static_cast<std::uint32_t>(set); };
  const auto high = [](std::uint64_t set) { return static_cast<std::uint32_t>(set >> 32); };
  const CapabilityData data{{low(caps.effective), low(caps.permitted), low(caps.inheritable)},
                            {high(caps.effective), high(caps.permitted), high(caps.inheritable)}};
  batch.must("capset", SYS_capset, {batch.object(header), batch.object(data)});
}

// What this process has, and so what a skeleton starts with.  Read once: ferry never changes its own.
const Result<sys::Status>& own_status() {
  static const Result<sys::Status> kOwn = []() -> Result<sys::Status> {
    FERRY_TRY(const auto text, sys::read_file("/proc/self/status"));
    return sys::parse_status(text);
  }();
  return kOwn;
}

// Where nobody needs to look: what create_user_ns in kernel/user_namespace.c gives the first process of a user
// namespace, whose children inherit it.  Its ids are ours, so they have to be set whatever is wanted.
Result<sys::Status> status_in_user_namespace(const sys::Status& own) {
  FERRY_TRY(const std::string text, sys::read_file("/proc/sys/kernel/cap_last_cap"));
  const auto last = sys::parse_number(std::string_view(text).substr(0, text.find('\n')));
  if (!last || *last > 63) {
    return fail(Kind::corrupt, "/proc/sys/kernel/cap_last_cap holds \"{}\"", text);
  }
  sys::Status out = own;
  out.cap_prm = out.cap_eff = out.cap_bnd = *last == 63 ? ~0ULL : (1ULL << (*last + 1)) - 1;
  out.cap_inh = out.cap_amb = 0;
  out.uid.fill(~0U);
  out.gid.fill(~0U);
  out.groups.assign(1, ~0U);
  return out;
}

// The ids of a task of a user namespace, as it sees them itself.
Result<void> see_from_inside(const pb::UsernsEntry& maps, HostPid tid, sys::Status& status) {
  const auto translate = [&](const userns::Extents& map, std::uint32_t& id) -> Result<void> {
    const auto found = userns::inside(map, id);
    if (!found) {
      return fail(Kind::unsupported, "task {} has the id {}, which its user namespace does not map", tid, id);
    }
    id = *found;
    return {};
  };
  for (std::uint32_t& id : status.uid) {
    FERRY_CHECK(translate(maps.uid_map(), id));
  }
  for (std::uint32_t& id : status.gid) {
    FERRY_CHECK(translate(maps.gid_map(), id));
  }
  if (maps.ferry_setgroups_denied()) {
    status.groups.clear();  // from outside of the namespace, and nobody inside can have them again
  }
  for (std::uint32_t& id : status.groups) {
    FERRY_CHECK(translate(maps.gid_map(), id));
  }
  return {};
}

// The AppArmor profile in the text of attr/current: "docker-default (enforce)\n".
std::string profile_in(std::string text) {
  text = text.substr(0, text.find_first_of(std::string("\n\0", 2)));
  if (const std::size_t mode = text.rfind(" ("); mode != std::string::npos && text.back() == ')') {
    text.resize(mode);
  }
  return text == "unconfined" ? "" : text;
}

// Empty if AppArmor is not there or leaves the task alone.
std::string apparmor_profile(int proc, HostPid tid) {
  // The directory of its own exists since Linux 5.1; attr/current belongs to the first security module.
  static const bool kEnabled = ::access("/sys/module/apparmor/parameters/enabled", F_OK) == 0;
  if (!kEnabled) {
    return "";
  }
  auto text = sys::read_file_at(proc, fmt::format("task/{}/attr/apparmor/current", tid));
  return text.has_value() ? profile_in(*text) : std::string();
}

std::string selinux_label(const std::string& proc) {
  static const bool kEnabled = ::access("/sys/fs/selinux/policyvers", F_OK) == 0;
  if (!kEnabled) {
    return "";  // no policy is loaded: there are no labels
  }
  auto text = sys::read_file(proc + "/attr/current");
  return text.has_value() ? text->substr(0, text->find_first_of(std::string("\n\0", 2))) : std::string();
}

Result<void> restore_ids(const pb::CredsEntry& want, const sys::Status& have, bool may_set_groups,
                         std::uint32_t& securebits, tracee::Batch& batch) {
  const std::array<std::uint32_t, 4> uid = {want.uid(), want.euid(), want.suid(), want.fsuid()};
  const std::array<std::uint32_t, 4> gid = {want.gid(), want.egid(), want.sgid(), want.fsgid()};
  const std::vector<std::uint32_t> groups(want.groups().begin(), want.groups().end());
  if (groups != have.groups && may_set_groups) {
    batch.must("setgroups", SYS_setgroups,
               {groups.size(), batch.bytes(std::as_bytes(std::span(groups.data(), groups.size())))});
  }
  if (gid != have.gid) {
    batch.must("setresgid", SYS_setresgid, {gid[0], gid[1], gid[2]});
    batch.may(SYS_setfsgid, {gid[3]});  // returns the old id, never an error
  }
  if (uid != have.uid) {
    if ((securebits & SECBIT_NO_SETUID_FIXUP) == 0) {
      // Else leaving uid 0 would take the capabilities away, which have their own place below.
      securebits |= SECBIT_NO_SETUID_FIXUP;
      batch.must("prctl(PR_SET_SECUREBITS)", SYS_prctl, {PR_SET_SECUREBITS, securebits, 0, 0, 0});
    }
    batch.must("setresuid", SYS_setresuid, {uid[0], uid[1], uid[2]});
    batch.may(SYS_setfsuid, {uid[3]});
  }
  return {};
}

struct Wanted {
  Caps caps;
  std::uint64_t bounding = 0, ambient = 0;
};

Result<void> restore_capabilities(const Wanted& want, const sys::Status& have, std::uint32_t want_bits,
                                  std::uint32_t bits, NsPid tid, tracee::Batch& batch) {
  Caps now{have.cap_eff, have.cap_prm, have.cap_inh};
  if (const std::uint64_t missing = (want.caps.permitted & ~have.cap_prm) | (want.bounding & ~have.cap_bnd);
      missing != 0) {
    return fail(Kind::denied, "task {} had {}, which ferry itself does not have here", tid, capability_names(missing));
  }
  if (want.ambient != have.cap_amb) {
    // An ambient capability has to be permitted and inheritable, and the final securebits may forbid it.
    if (now.inheritable != want.caps.inheritable) {
      now.inheritable = want.caps.inheritable;
      set_capabilities(now, batch);
    }
    batch.must("prctl(PR_CAP_AMBIENT_CLEAR_ALL)", SYS_prctl, {PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0});
    for (int cap = 0; cap < 64; ++cap) {
      if (((want.ambient >> cap) & 1) != 0) {
        batch.must("prctl(PR_CAP_AMBIENT_RAISE)", SYS_prctl, {PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0});
      }
    }
  } else if ((want.caps.inheritable & ~want.bounding) != 0 && now.inheritable != want.caps.inheritable) {
    now.inheritable = want.caps.inheritable;  // not possible once the bounding set is smaller
    set_capabilities(now, batch);
  }
  if (want_bits != bits) {
    batch.must("prctl(PR_SET_SECUREBITS)", SYS_prctl, {PR_SET_SECUREBITS, want_bits, 0, 0, 0});
  }
  for (int cap = 0; cap < 64; ++cap) {
    if ((((have.cap_bnd & ~want.bounding) >> cap) & 1) != 0) {
      batch.must("prctl(PR_CAPBSET_DROP)", SYS_prctl, {PR_CAPBSET_DROP, cap, 0, 0, 0});
    }
  }
  if (now != want.caps) {
    set_capabilities(want.caps, batch);
  }
  return {};
}

// A profile is taken on by the thread itself: the file may be written only by whom it belongs to.
void change_profile(const std::string& profile, tracee::Batch& batch) {
  const std::string command = "changeprofile " + profile;
  const tracee::Value fd =
      batch.must("open(/proc/thread-self/attr/apparmor/current)", SYS_openat,
                 {AT_FDCWD, batch.string("/proc/thread-self/attr/apparmor/current"), O_WRONLY | O_CLOEXEC, 0});
  batch.must("changing the AppArmor profile", SYS_write,
             {fd, batch.bytes(std::as_bytes(std::span(command))), command.size()});
  batch.must("close", SYS_close, {fd});
}

}  // namespace

Result<std::uint64_t> capabilities(const google::protobuf::RepeatedField<std::uint32_t>& words, std::string_view name) {
  if (words.size() > 2) {
    return fail(Kind::corrupt, "capability set {} has {} words, not 2", name, words.size());
  }
  const std::uint64_t low = words.size() > 0 ? words.Get(0) : 0;
  const std::uint64_t high = words.size() > 1 ? words.Get(1) : 0;
  return high << 32 | low;
}

std::string capability_names(std::uint64_t set) {
  // include/uapi/linux/capability.h, in the order of their numbers
  static constexpr std::array kNames = {"CHOWN",
                                        "DAC_OVERRIDE",
                                        "DAC_READ_SEARCH",
                                        "FOWNER",
                                        "FSETID",
                                        "KILL",
                                        "SETGID",
                                        "SETUID",
                                        "SETPCAP",
                                        "LINUX_IMMUTABLE",
                                        "NET_BIND_SERVICE",
                                        "NET_BROADCAST",
                                        "NET_ADMIN",
                                        "NET_RAW",
                                        "IPC_LOCK",
                                        "IPC_OWNER",
                                        "SYS_MODULE",
                                        "SYS_RAWIO",
                                        "SYS_CHROOT",
                                        "SYS_PTRACE",
                                        "SYS_PACCT",
                                        "SYS_ADMIN",
                                        "SYS_BOOT",
                                        "SYS_NICE",
                                        "SYS_RESOURCE",
                                        "SYS_TIME",
                                        "SYS_TTY_CONFIG",
                                        "MKNOD",
                                        "LEASE",
                                        "AUDIT_WRITE",
                                        "AUDIT_CONTROL",
                                        "SETFCAP",
                                        "MAC_OVERRIDE",
                                        "MAC_ADMIN",
                                        "SYSLOG",
                                        "WAKE_ALARM",
                                        "BLOCK_SUSPEND",
                                        "AUDIT_READ",
                                        "PERFMON",
                                        "BPF",
                                        "CHECKPOINT_RESTORE"};
  std::string out;
  for (std::size_t cap = 0; cap < kNames.size(); ++cap) {
    if (((set >> cap) & 1) != 0) {
      out += fmt::format("{}CAP_{}", out.empty() ? "" : " ", kNames[cap]);
      set &= ~(std::uint64_t{1} << cap);
    }
  }
  if (set != 0) {
    out += fmt::format("{}{:#x}", out.empty() ? "" : " ", set);
  }
  return out;
}

Result<void> preflight(HostPid pid, const DumpOptions&) {
  const std::string theirs = selinux_label(fmt::format("/proc/{}", pid));
  if (theirs != selinux_label("/proc/self")) {
    return fail(Kind::unsupported, "pid {} has the SELinux label {}, which ferry cannot carry yet", pid, theirs);
  }
  return {};
}

Answers ask(DumpTask& task, tracee::Batch& batch) {
  const tracee::Value dumpable = batch.must("prctl(PR_GET_DUMPABLE)", SYS_prctl, {PR_GET_DUMPABLE, 0, 0, 0, 0});
  return [&task, dumpable](const tracee::Replies& replies) -> Result<void> {
    task.mm->set_dumpable(static_cast<std::int32_t>(replies[dumpable]));
    return {};
  };
}

Answers ask_thread(DumpTask&, DumpThread& thread, tracee::Batch& batch) {
  const tracee::Value bits = batch.must("prctl(PR_GET_SECUREBITS)", SYS_prctl, {PR_GET_SECUREBITS, 0, 0, 0, 0});
  return [&thread, bits](const tracee::Replies& replies) -> Result<void> {
    auto& creds = *thread.core->mutable_thread_core()->mutable_creds();
    creds.set_secbits(static_cast<std::uint32_t>(replies[bits]));
    return {};
  };
}

// The same object of the kernel's: everything below comes with it.
void answer_like(const DumpTask&, DumpThread&) {}

Result<void> collect_thread(DumpTask& task, DumpThread& thread, DumpContext& context) {
  if (!task.asks(thread)) {
    *thread.core->mutable_thread_core()->mutable_creds() = task.model_of(thread).core->thread_core().creds();
    return {};
  }
  std::optional<sys::Status> from_inside;
  if (const pb::UsernsEntry* maps = userns::maps_of(context.set, *task.ids); maps != nullptr) {
    from_inside = *thread.status;
    FERRY_CHECK(see_from_inside(*maps, thread.tid, *from_inside));
  }
  const sys::Status& status = from_inside ? *from_inside : *thread.status;
  auto& out = *thread.core->mutable_thread_core()->mutable_creds();
  out.set_uid(status.uid[0]);
  out.set_euid(status.uid[1]);
  out.set_suid(status.uid[2]);
  out.set_fsuid(status.uid[3]);
  out.set_gid(status.gid[0]);
  out.set_egid(status.gid[1]);
  out.set_sgid(status.gid[2]);
  out.set_fsgid(status.gid[3]);
  out.mutable_groups()->Assign(status.groups.begin(), status.groups.end());
  put(*out.mutable_cap_inh(), status.cap_inh);
  put(*out.mutable_cap_prm(), status.cap_prm);
  put(*out.mutable_cap_eff(), status.cap_eff);
  put(*out.mutable_cap_bnd(), status.cap_bnd);
  put(*out.mutable_cap_amb(), status.cap_amb);
  out.set_no_new_privs(status.no_new_privs ? 1 : 0);
  if (const std::string profile = apparmor_profile(task.proc.get(), thread.tid); !profile.empty()) {
    out.set_lsm_profile(profile);
  }
  return {};
}

Result<void> restore_thread(RestoreTask& task, RestoreThread& thread, RestoreContext& context, tracee::Batch& batch) {
  const auto& core = thread.core->thread_core();
  const pb::CredsEntry& want = core.creds();
  const auto& own = own_status();
  if (!own.has_value()) {
    return tl::unexpected<Error>(own.error());
  }
  const pb::UsernsEntry* maps = userns::maps_of(context.set, *task.ids);
  sys::Status have = *own;
  if (maps != nullptr) {
    FERRY_TRY(have, status_in_user_namespace(*own));
  }
  if (want.has_lsm_sockcreate() || want.has_apparmor_data()) {
    return fail(Kind::unsupported, "task {} has SELinux or stacked AppArmor data, which ferry cannot restore",
                thread.ns_tid);
  }
  const std::string& profile = context.options.lsm_profile.empty() ? want.lsm_profile() : context.options.lsm_profile;
  // runc writes "apparmor:NAME" (criu(8) --lsm-profile).
  const std::string name = profile.rfind("apparmor:", 0) == 0 ? profile.substr(9) : profile;
  if (!name.empty() && want.has_lsm_profile()) {
    change_profile(name, batch);
  }
  const int own_bits = ::prctl(PR_GET_SECUREBITS, 0, 0, 0, 0);
  if (own_bits < 0) {
    return sys_fail("prctl(PR_GET_SECUREBITS)");
  }
  auto bits = maps != nullptr ? std::uint32_t{SECUREBITS_DEFAULT} : static_cast<std::uint32_t>(own_bits);
  FERRY_CHECK(restore_ids(want, have, maps == nullptr || !maps->ferry_setgroups_denied(), bits, batch));
  Wanted caps;
  FERRY_TRY(caps.caps.effective, capabilities(want.cap_eff(), "cap_eff"));
  FERRY_TRY(caps.caps.permitted, capabilities(want.cap_prm(), "cap_prm"));
  FERRY_TRY(caps.caps.inheritable, capabilities(want.cap_inh(), "cap_inh"));
  FERRY_TRY(caps.bounding, capabilities(want.cap_bnd(), "cap_bnd"));
  FERRY_TRY(caps.ambient, capabilities(want.cap_amb(), "cap_amb"));
  FERRY_CHECK(restore_capabilities(caps, have, want.secbits(), bits, thread.ns_tid, batch));
  if (want.no_new_privs() != 0 && !have.no_new_privs) {
    batch.must("prctl(PR_SET_NO_NEW_PRIVS)", SYS_prctl, {PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0});
  }
  if (want.no_new_privs() == 0 && have.no_new_privs) {
    return fail(Kind::denied, "ferry runs with no_new_privs set, which task {} had not and which cannot be taken off",
                thread.ns_tid);
  }
  if (core.pdeath_sig() != 0) {
    batch.must("prctl(PR_SET_PDEATHSIG)", SYS_prctl, {PR_SET_PDEATHSIG, core.pdeath_sig(), 0, 0, 0});
  }
  return {};
}

Result<void> restore_dumpable(RestoreTask& task, tracee::Batch& batch) {
  if (task.mm == nullptr || !task.mm->has_dumpable()) {
    return {};
  }
  // 2 ("as root only") is what a change of credentials leaves under fs.suid_dumpable=2; prctl(2) refuses
  // to set it, and 0 protects at least as well.
  const bool dumpable = task.mm->dumpable() == 1;
  batch.must("prctl(PR_SET_DUMPABLE)", SYS_prctl, {PR_SET_DUMPABLE, dumpable ? 1 : 0, 0, 0, 0});
  return {};
}

}  // namespace ferry::state::creds

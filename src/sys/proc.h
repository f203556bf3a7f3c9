// What procfs tells of a process.  Parsing takes text and returns structs, so that it is tested on
// plain text; opening is the caller's.  Source: proc(5), Documentation/filesystems/proc.rst.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/ids.h"
#include "base/unique_fd.h"

namespace ferry::sys {

// /proc/PID or /proc/PID/task/TID, opened with O_PATH: the handle stays this task's, whoever gets its
// number later (reads fail with ESRCH once it is gone).
Result<UniqueFd> open_proc(HostPid pid);
Result<UniqueFd> open_proc_task(HostPid pid, HostPid tid);

struct Stat {  // /proc/PID/stat
  pid_t pid = 0;
  std::string comm;
  char state = '?';
  pid_t ppid = 0, pgrp = 0, session = 0;
  std::int32_t tty_nr = 0;
  std::uint32_t flags = 0;  // PF_*
  std::int64_t nice = 0;
  std::uint64_t start_time = 0;  // clock ticks since boot
  std::uint64_t start_code = 0, end_code = 0, start_stack = 0;
  std::uint64_t start_data = 0, end_data = 0, start_brk = 0;
  std::uint64_t arg_start = 0, arg_end = 0, env_start = 0, env_end = 0;
  int exit_signal = 0;  // what its end sends to the parent
  int exit_code = 0;
};
Result<Stat> parse_stat(std::string_view text);

struct Status {  // /proc/PID/status
  std::uint32_t umask = 0;
  pid_t tgid = 0;
  pid_t tracer = 0;
  std::array<std::uint32_t, 4> uid{}, gid{};  // real, effective, saved, filesystem
  std::vector<std::uint32_t> groups;
  std::vector<pid_t> ns_pid, ns_pgid, ns_sid, ns_tgid;  // outermost first
  std::uint64_t sig_pending = 0, shared_pending = 0, sig_blocked = 0, sig_ignored = 0, sig_caught = 0;
  std::uint64_t cap_inh = 0, cap_prm = 0, cap_eff = 0, cap_bnd = 0, cap_amb = 0;
  bool no_new_privs = false;
  int seccomp = 0;
  int seccomp_filters = 0;
  bool thp_enabled = true;
  int threads = 0;
};
Result<Status> parse_status(std::string_view text);

struct Mapping {  // one line of maps, with what smaps adds
  std::uint64_t start = 0, end = 0;
  int prot = 0;              // PROT_*
  bool shared = false;       // MAP_SHARED
  std::uint64_t offset = 0;  // bytes
  std::uint64_t dev = 0;     // kernel style: major << 20 | minor
  std::uint64_t inode = 0;
  std::string name;  // path, "[heap]", "[vdso]", … without " (deleted)"
  bool deleted = false;
  std::string vm_flags;         // " rd wr mr …" of smaps, with a blank on either side; empty if from maps
  bool may_have_policy = true;  // mbind(2); false only where the kernel was seen to have none (sys/mapping_look.h)

  [[nodiscard]] bool has_flag(std::string_view two_letters) const {
    return vm_flags.find(" " + std::string(two_letters) + " ") != std::string::npos;
  }
  [[nodiscard]] std::uint64_t size() const { return end - start; }
};
// Text of maps or of smaps.
Result<std::vector<Mapping>> parse_maps(std::string_view text);

// The pids of /proc/PID/task/TID/children.
Result<std::vector<HostPid>> parse_children(std::string_view text);
// Numbers in a directory such as task/ or fd/.
Result<std::vector<int>> numeric_entries(int directory, const std::string& path);

// "key:\tvalue" lines of fdinfo; all that were found, in order.
struct FdInfo {
  std::uint64_t pos = 0;
  std::uint32_t flags = 0;  // O_*, including O_CLOEXEC
  int mnt_id = -1;
  std::uint64_t ino = 0;
  std::vector<std::pair<std::string, std::string>> rest;
  [[nodiscard]] std::optional<std::string> get(std::string_view key) const;
};
Result<FdInfo> parse_fdinfo(std::string_view text);

// A whole unsigned number in the given base; nothing else around it.
std::optional<std::uint64_t> parse_number(std::string_view text, int base = 10);

}  // namespace ferry::sys

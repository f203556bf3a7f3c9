// Credentials of every thread: ids, groups, capabilities, securebits, no_new_privs, security label.
// Source: credentials(7), capabilities(7), proc(5) /proc/PID/status.
#pragma once

#include "state/dump.h"
#include "state/restore.h"

namespace ferry::state::creds {

// SELinux labels are refused; AppArmor profiles are carried.
Result<void> preflight(HostPid pid, const DumpOptions& options);

// Dumpable attribute of the address space (prctl(2) PR_GET_DUMPABLE).
Answers ask(DumpTask& task, tracee::Batch& batch);
Answers ask_thread(DumpTask& task, DumpThread& thread, tracee::Batch& batch);
// In place of a question, for a thread that is like another one that was asked.
void answer_like(const DumpTask& task, DumpThread& thread);
Result<void> collect_thread(DumpTask& task, DumpThread& thread, DumpContext& context);

// The last calls of a thread's batch: afterwards it has the privileges it had.  What the new thread has
// already (it starts as a copy of this process) is not set again.  Ends with the parent-death signal,
// which a change of credentials resets (prctl(2) PR_SET_PDEATHSIG).
Result<void> restore_thread(RestoreTask& task, RestoreThread& thread, RestoreContext& context, tracee::Batch& batch);
// The very last call of the leader, after the credentials of all threads, which reset it as well.
Result<void> restore_dumpable(RestoreTask& task, tracee::Batch& batch);

// Capability words of an image as one set.
Result<std::uint64_t> capabilities(const google::protobuf::RepeatedField<std::uint32_t>& words, std::string_view name);
// "CAP_CHOWN CAP_SYS_ADMIN 0x40…": known names, and the rest in hexadecimal.
std::string capability_names(std::uint64_t set);

}  // namespace ferry::state::creds

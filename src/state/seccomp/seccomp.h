// Seccomp modes and filters.  Source: seccomp(2), ptrace(2) PTRACE_SECCOMP_GET_FILTER,
// Documentation/userspace-api/seccomp_filter.rst.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "image/proto/security.pb.h"
#include "state/dump.h"
#include "state/restore.h"

namespace ferry::state::seccomp {

Answers ask_thread(DumpTask& task, DumpThread& thread, tracee::Batch& batch);
// In place of a question, for a thread that is like another one that was asked.
void answer_like(const DumpTask& task, DumpThread& thread);
// Reads the filters from outside.  A filter that asks a supervisor (SECCOMP_RET_USER_NOTIF) is refused:
// the supervisor's descriptor is outside of the tree.
Result<void> collect_thread(DumpTask& task, DumpThread& thread, DumpContext& context);
// seccomp.img exists also in a set without filters.
void touch(DumpContext& context);

// Before the credentials: installing a filter needs CAP_SYS_ADMIN or no_new_privs.  Filtering is suspended
// while the thread is traced, so calls after it in the batch pass.
Result<void> restore_thread(RestoreTask& task, RestoreThread& thread, RestoreContext& context, tracee::Batch& batch);

// The filters of a chain from the oldest to the one at `newest`.  Errors: corrupt if the links do not
// lead to an end.
Result<std::vector<const pb::SeccompFilter*>> chain(const pb::SeccompEntry& all, std::uint32_t newest);
// The index of the filter in `all`; it is added if it is not there.
std::uint32_t intern(pb::SeccompEntry& all, const pb::SeccompFilter& filter);
// Whether a filter program holds "return SECCOMP_RET_USER_NOTIF".
bool asks_supervisor(std::span<const std::byte> program);

}  // namespace ferry::state::seccomp

#include <map>
#include <set>

#include "engine/restore_tree.h"

namespace ferry::engine {
namespace {

using image::Name;
using image::Type;
using state::RestoreTask;
using state::RestoreThread;

constexpr std::uint32_t kDead = 2;

Result<void> read_task(const image::Set& set, RestoreTask& task) {
  const std::uint64_t pid = task.entry->pid();
  FERRY_TRY(task.core, set.one<pb::CoreEntry>({Type::core, pid}));
  if (task.core->mtype() != pb::CoreEntry::MARCH_X86_64) {
    return fail(Kind::unsupported, "the set comes from another processor architecture; this host is x86-64");
  }
  if (!task.core->has_tc()) {
    return fail(Kind::corrupt, "core-{} has no process part", pid);
  }
  if (task.core->tc().task_state() == kDead || task.core->tc().task_state() == 6) {
    return {};
  }
  FERRY_TRY(task.mm, set.one<pb::MmEntry>({Type::mm, pid}));
  FERRY_TRY(task.ids, set.one<pb::TaskKobjIdsEntry>({Type::ids, pid}));
  FERRY_TRY(task.fs, set.one<pb::FsEntry>({Type::fs, pid}));
  for (const std::uint32_t tid : task.entry->threads()) {
    RestoreThread thread;
    thread.ns_tid = NsPid(static_cast<pid_t>(tid));
    thread.index = task.threads.size();
    FERRY_TRY(thread.core, set.one<pb::CoreEntry>({Type::core, tid}));
    if (!thread.core->has_thread_info() || !thread.core->has_thread_core()) {
      return fail(Kind::corrupt, "core-{} has no registers or no thread part", tid);
    }
    task.threads.push_back(thread);
  }
  if (task.threads.empty() || task.threads.front().ns_tid != task.ns_pid()) {
    return fail(Kind::corrupt, "pstree: the first thread of pid {} is not the process itself", pid);
  }
  return {};
}

}  // namespace

Result<std::vector<std::unique_ptr<RestoreTask>>> read_tree(const image::Set& set) {
  std::vector<std::unique_ptr<RestoreTask>> tasks;
  std::set<std::uint32_t> numbers;
  std::map<std::uint32_t, RestoreTask*> by_pid;
  for (const auto* entry : set.list<pb::PstreeEntry>({Type::pstree, 0})) {
    auto task = std::make_unique<RestoreTask>();
    task->entry = entry;
    const bool in_range = entry->pid() > 0 && entry->pid() < (1U << 22);
    if (!in_range || !numbers.insert(entry->pid()).second) {
      return fail(Kind::corrupt, "pstree lists pid {} twice or out of range", entry->pid());
    }
    FERRY_CHECK(read_task(set, *task).during("pid {}", entry->pid()));
    for (const RestoreThread& thread : task->threads) {
      if (thread.index != 0 && (thread.ns_tid.value <= 0 || thread.ns_tid.value >= 1 << 22 ||
                                !numbers.insert(static_cast<std::uint32_t>(thread.ns_tid.value)).second)) {
        return fail(Kind::corrupt, "pstree lists thread {} twice or out of range", thread.ns_tid);
      }
    }
    if (const auto parent = by_pid.find(entry->ppid()); parent != by_pid.end()) {
      task->parent = parent->second;
    }
    by_pid.emplace(entry->pid(), task.get());
    if ((task->parent == nullptr) != tasks.empty()) {
      return fail(Kind::corrupt, "pstree: pid {} has parent {}, which is not listed before it", entry->pid(),
                  entry->ppid());
    }
    if (task->parent != nullptr && task->parent->mm == nullptr) {
      return fail(Kind::corrupt, "pstree: pid {} is a child of a dead process", entry->pid());
    }
    tasks.push_back(std::move(task));
  }
  if (tasks.empty()) {
    return fail(Kind::corrupt, "pstree.img is missing or empty: this directory holds no checkpoint");
  }
  if (tasks.front()->mm == nullptr) {
    return fail(Kind::corrupt, "the root task of the set is dead");
  }
  return tasks;
}

}  // namespace ferry::engine

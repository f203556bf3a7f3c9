// What the rooms share while a tree is being rebuilt.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/ids.h"
#include "base/unique_fd.h"
#include "image/proto/core.pb.h"
#include "image/proto/files.pb.h"
#include "image/proto/mm.pb.h"
#include "image/proto/pstree.pb.h"
#include "image/set.h"
#include "state/inside.h"
#include "state/options.h"
#include "tracee/process.h"

namespace ferry::state {

struct RestoreThread {
  HostPid tid;
  NsPid ns_tid;
  std::size_t index = 0;  // in the process's threads
  const pb::CoreEntry* core = nullptr;
};

struct RestoreTask {
  const pb::PstreeEntry* entry = nullptr;
  const pb::CoreEntry* core = nullptr;        // the leader's
  const pb::MmEntry* mm = nullptr;            // nullptr: zombie
  const pb::TaskKobjIdsEntry* ids = nullptr;  // nullptr: zombie
  const pb::FsEntry* fs = nullptr;            // nullptr: zombie
  RestoreTask* parent = nullptr;              // nullptr: the root
  HostPid pid;                                // ours to ptrace
  std::vector<RestoreThread> threads;         // leader first; host tids known once they are made
  tracee::Process process;                    // the skeleton, stopped; runs batches
  int controller_pidfd = -1;                  // in the skeleton's table: a pidfd of ours, for pidfd_getfd(2)

  [[nodiscard]] NsPid ns_pid() const { return NsPid(static_cast<pid_t>(entry->pid())); }
  tracee::Thread& leader() { return process.leader(); }
};

class OpenFiles;
class Nested;
class Leftovers;

struct RestoreContext {
  const RestoreOptions& options;
  const image::Set& set;
  std::vector<std::unique_ptr<RestoreTask>>& tasks;  // parents before children; front() is the root
  // Runs ordinary code of ours with the tree's namespaces and root directory (state/inside.h).
  Inside& inside;
  OpenFiles& files;
  Listener& listener;
  // Namespaces beside those of the root task (state/nested/nested.h).
  Nested& nested;
  // What has to go if the restore fails (state/leftovers.h).
  Leftovers& leftovers;
  RestoreTask& root() { return *tasks.front(); }
  [[nodiscard]] RestoreTask* find(NsPid pid) const {
    for (const auto& t : tasks) {
      if (t->ns_pid() == pid) {
        return t.get();
      }
    }
    return nullptr;
  }
};

}  // namespace ferry::state

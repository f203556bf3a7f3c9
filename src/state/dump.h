// What the rooms share while a tree is being saved.
//
// Everything in here belongs to one checkpoint; rooms get it by reference and keep nothing.  A room
// reads and never alters what it reads.  Facts visible from outside are taken from outside (procfs,
// a duplicate of the descriptor); only what the process alone can see is asked for in a batch.
#pragma once

#include <sys/stat.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/ids.h"
#include "base/unique_fd.h"
#include "image/page_sink.h"
#include "image/proto/core.pb.h"
#include "image/proto/files.pb.h"
#include "image/proto/mm.pb.h"
#include "image/proto/pstree.pb.h"
#include "image/set.h"
#include "state/options.h"
#include "sys/proc.h"
#include "sys/task_look.h"
#include "tracee/process.h"

namespace ferry::state {

struct DumpThread {
  HostPid tid;
  NsPid ns_tid;
  std::size_t index = 0;          // in the process's threads
  tracee::Registers registers{};  // as the stop left them
  std::uint64_t signal_mask = 0;
  std::optional<sys::Status> status;    // /proc/PID/task/TID/status; there once it is collected
  std::optional<sys::TaskWords> words;  // if the process was looked at (sys/task_look.h)
  // Index of an earlier thread of which the kernel holds the same `nature`: what that one answered counts for
  // this one too.  Its own if there is none: then it is asked.
  std::size_t like = 0;
  struct {
    std::uint64_t pointer = 0;  // 0: not registered
    std::uint32_t size = 0, signature = 0;
  } rseq;                         // there once system calls are settled
  pb::CoreEntry* core = nullptr;  // in the Set; the leader's holds tc as well
};

struct DumpTask {
  HostPid pid;  // if the main thread has ended: of the first that lives, under which procfs shows the process
  bool leader_ended = false;
  NsPid ns_pid, ns_pgid, ns_sid;  // 0: outside of the pid namespace of the tree
  DumpTask* parent = nullptr;     // nullptr: the root
  bool zombie = false;            // then everything below is empty, apart from stat and core
  bool job_stopped = false;
  int stop_signal = 0;
  sys::Stat stat;
  sys::Status status;
  UniqueFd proc;                       // /proc/PID, O_PATH
  UniqueFd pidfd;                      // pidfd_open(2)
  std::vector<sys::Mapping> mappings;  // from smaps, with vm_flags
  std::vector<DumpThread> threads;     // leader first
  tracee::Process process;             // stopped; runs batches once the engine has mapped the area
  pb::PstreeEntry* entry = nullptr;
  pb::CoreEntry* core = nullptr;  // the leader's
  pb::MmEntry* mm = nullptr;
  pb::TaskKobjIdsEntry* ids = nullptr;

  [[nodiscard]] bool asks(const DumpThread& t) const { return t.like == t.index; }
  [[nodiscard]] const DumpThread& model_of(const DumpThread& t) const { return threads.at(t.like); }
  tracee::Thread& thread(const DumpThread& t) { return process.threads().at(t.index); }
  [[nodiscard]] std::string subject() const { return fmt::format("pid {}", pid); }
};

class FileTable;
class DumpHost;
namespace memory {
class Increment;
}

struct DumpContext {
  const DumpOptions& options;
  image::Set& set;
  std::vector<std::unique_ptr<DumpTask>>& tasks;  // parents before children; front() is the root
  FileTable& files;
  // Where the pages of a pagemap go: a file of the set's directory, or a connection.
  const std::function<Result<std::unique_ptr<image::PageSink>>(image::Name)>& open_pages;
  // This host, and a foot in the tree's namespaces (state/dump_host.h).
  DumpHost& host;
  // What an earlier set has of the tree's memory; nullptr: there is none.
  memory::Increment* increment = nullptr;
  DumpTask& root() { return *tasks.front(); }
  // nullptr if there is no task of that number in the tree
  [[nodiscard]] DumpTask* find(HostPid pid) const {
    for (const auto& t : tasks) {
      if (t->pid == pid) {
        return t.get();
      }
    }
    return nullptr;
  }
};

// Questions to ask in a batch, and what to do with the answers once it has run.
using Answers = std::function<Result<void>(const tracee::Replies&)>;

}  // namespace ferry::state

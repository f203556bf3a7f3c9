#include "engine/rehearsal.h"

#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"
#include "engine/checkpoint_story.h"
#include "sys/file.h"
#include "sys/proc.h"
#include "sys/task_look.h"

namespace ferry::engine {
namespace {

// What is given back to the kernel after the rehearsal would have to be faulted in again.
constexpr int kKeptHeap = 64 << 20;
// Smaller ones come from the heap, which is warm; each of its own would be given back, and zeroed and faulted in anew.
constexpr int kMappedBlocks = 4 << 20;

class Nobody final : public Listener {
 public:
  Result<Answer> on(const Notice&) override { return Answer{}; }
};

class Nowhere final : public Keeper {
 public:
  Result<std::unique_ptr<image::PageSink>> pages(image::Set&, image::Name) override {
    return std::make_unique<Pages>();
  }
  Result<void> images(const image::Set& set) override {
    for (const image::Name& name : set.names()) {
      FERRY_CHECK(image::encode_file(set, name));
    }
    return {};
  }

 private:
  class Pages final : public image::PageSink {
   public:
    void describe(std::uint64_t, std::uint64_t, std::uint32_t) override {}
    Result<void> append(std::span<const std::byte>) override { return {}; }
    Result<void> finish() override { return {}; }
  };
};

// One of these for each of thousands of threads has its price, so only what is read for each is looked at.
constexpr const char* kOfThread[] = {"status", "cgroup", "children", "ns/net",
                                     "ns/ipc", "ns/uts", "ns/mnt",   "ns/cgroup"};

// The same of a process.
constexpr const char* kOfProcess[] = {
    "stat",  "status", "root",    "cwd",           "exe",  "auxv",     "mem",    "maps",
    "smaps", "timers", "pagemap", "oom_score_adj", "task", "loginuid", "cgroup", "coredump_filter"};
// Of these directories everything: to list one makes the kernel know what is in it (proc_fill_cache in fs/proc/base.c).
constexpr const char* kLists[] = {"ns", "fd", "fdinfo", "map_files"};

}  // namespace

void warm_procfs(HostPid pid, bool with_look) {
  const auto proc = sys::open_proc(pid);
  if (!proc.has_value()) {
    return;  // it has just ended
  }
  struct stat st;
  for (const char* name : kOfProcess) {
    (void)::fstatat(proc->get(), name, &st, AT_SYMLINK_NOFOLLOW);
  }
  for (const char* list : kLists) {
    (void)sys::list_directory(proc->get(), list);
  }
  const auto tids = sys::numeric_entries(proc->get(), "task");
  if (with_look && tids.has_value() && tids->size() >= sys::TaskLook::kWorthIt) {
    return;  // their files will hardly be read
  }
  for (const int tid : tids.has_value() ? *tids : std::vector<int>{}) {
    for (const char* name : kOfThread) {
      (void)::fstatat(proc->get(), fmt::format("task/{}/{}", tid, name).c_str(), &st, 0);
    }
  }
}

void rehearse(const DumpOptions& options) {
  (void)::mallopt(M_TRIM_THRESHOLD, kKeptHeap);
  (void)::mallopt(M_TOP_PAD, 1 << 20);
  (void)::mallopt(M_MMAP_THRESHOLD, kMappedBlocks);
  const pid_t child = ::fork();
  if (child == 0) {
    ::syscall(SYS_close_range, 0U, ~0U, 0U);
    for (;;) {
      ::pause();
    }
  }
  if (child < 0) {
    return;
  }
  DumpOptions of_child = options;
  of_child.pid = HostPid(child);
  of_child.freeze_cgroup.clear();
  of_child.shell_job = true;
  of_child.leave_running = false;
  of_child.leave_stopped = false;
  of_child.parent_images.clear();
  of_child.track_memory = false;
  of_child.page_server.reset();
  of_child.lazy_pages = false;
  Nobody nobody;
  Nowhere nowhere;
  log::debug("rehearsal with pid {}", child);
  if (const auto done = CheckpointStory(of_child, nobody, nowhere).run(); !done.has_value()) {
    log::debug("rehearsal: {}", done.error().message());
  }
  ::kill(child, SIGKILL);
  (void)::waitpid(child, nullptr, 0);
  log::debug("end of the rehearsal");
}

}  // namespace ferry::engine

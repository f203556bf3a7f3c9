#include "engine/restore.h"

#include <signal.h>
#include <sys/wait.h>

#include <chrono>

#include "base/log.h"
#include "engine/limits.h"
#include "engine/restore_tree.h"
#include "image/page_store.h"
#include "image/proto/inventory.pb.h"
#include "state/cpu/cpu.h"
#include "state/file_kind.h"
#include "state/files/fs.h"
#include "state/inside.h"
#include "state/memory/memory.h"
#include "state/nsids/nsids.h"
#include "state/restore.h"

namespace ferry::engine {
namespace {

using Clock = std::chrono::steady_clock;
using state::RestoreTask;
using state::RestoreThread;

std::uint64_t micros(Clock::duration d) {
  return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(d).count());
}

// Everything of one restore.  Until the tree is let go, destroying it kills what was made.
class Restore {
 public:
  Restore(const RestoreOptions& options, Listener& listener) : options_(options), listener_(listener) {}
  Restore(const Restore&) = delete;
  Restore& operator=(const Restore&) = delete;
  ~Restore() {
    if (!let_go_) {
      kill_skeletons(tasks_);
    }
  }

  Result<RestoreReport> run() {
    const auto begin = Clock::now();
    FERRY_CHECK(raise_descriptor_limit());
    FERRY_CHECK(read_images());
    FERRY_CHECK(tell(Stage::pre_restore, false));
    FERRY_CHECK(make_skeletons());
    report_.forking_us = micros(Clock::now() - begin);
    FERRY_CHECK(dress());
    FERRY_CHECK(tell(Stage::post_restore, true));
    FERRY_CHECK(resume());
    report_.root = context_.root().pid;
    report_.restore_us = micros(Clock::now() - begin);
    return report_;
  }

 private:
  Result<void> tell(Stage stage, bool with_pid) {
    std::optional<HostPid> pid;
    if (with_pid) {
      pid = context_.root().pid;
    }
    FERRY_CHECK(listener_.on({stage, pid, -1}));
    return {};
  }

  Result<void> read_images() {
    FERRY_TRY(set_, image::load(options_.images_dir));
    FERRY_TRY(tasks_, read_tree(set_));
    FERRY_TRY(auto pages, image::PageStore::open(set_, options_.images_dir));
    pages_ = std::make_unique<image::PageStore>(std::move(pages));
    return files_.prepare(context_);
  }

  Result<void> make_skeletons() {
    FERRY_TRY(namespaces_, state::NamespaceIds::of(set_));
    RootRequest request;
    request.pid = context_.root().ns_pid();
    request.clone_flags = namespaces_.clone_flags();
    request.sibling = options_.sibling;
    FERRY_CHECK(make_root(request, context_.root()));
    if (request.clone_flags != 0) {
      FERRY_CHECK(tell(Stage::setup_namespaces, true));
    }
    FERRY_TRY(layout_, clear_root(context_));
    if (request.clone_flags != 0) {
      FERRY_CHECK(tell(Stage::post_setup_namespaces, false));
    }
    return grow_tree(context_, layout_);
  }

  Result<void> dress() {
    FERRY_CHECK(files_.open_all(context_));
    for (auto& task : tasks_) {
      if (task->mm != nullptr) {
        FERRY_CHECK(dress(*task).during("restoring pid {}", task->ns_pid()));
      }
    }
    return {};
  }

  Result<void> dress(RestoreTask& task) {
    auto kernel = layout_.kernel;
    tracee::Batch mappings;
    FERRY_CHECK(state::memory::add_mappings(task, context_, kernel, layout_.park, mappings));
    FERRY_CHECK(task.process.run(task.leader(), mappings).during("mappings"));
    FERRY_TRY(const std::uint64_t filled, state::memory::fill(task, *pages_));
    report_.pages_restored += filled;
    tracee::Batch of_process;
    FERRY_CHECK(state::memory::finish(task, context_, of_process));
    FERRY_CHECK(state::fs::restore(task, context_, of_process));
    FERRY_CHECK(task.process.run(task.leader(), of_process).during("process state"));
    FERRY_CHECK(make_threads(task));
    FERRY_CHECK(files_.install(context_, task));
    task_kernel_.push_back(kernel);
    return {};
  }

  // The point of no return: the batch areas go, the threads get their registers and run.
  Result<void> resume() {
    std::size_t index = 0;
    for (auto& task : tasks_) {
      if (task->mm == nullptr) {
        continue;
      }
      const auto& kernel = task_kernel_[index++];
      FERRY_TRY(const std::uint64_t at, task->process.find_syscall(kernel.vdso.start, kernel.vdso.size));
      FERRY_CHECK(task->process.unmap_area(task->leader(), at));
      for (RestoreThread& thread : task->threads) {
        FERRY_CHECK(set_cpu(*task, thread).during("registers of thread {}", thread.ns_tid));
      }
    }
    (void)tell(Stage::network_unlock, false);
    (void)tell(Stage::pre_resume, false);
    let_go_ = true;
    for (auto& task : tasks_) {
      for (auto& thread : task->process.threads()) {
        FERRY_CHECK(thread.detach());
      }
    }
    (void)tell(Stage::post_resume, false);
    return {};
  }

  static Result<void> set_cpu(RestoreTask& task, RestoreThread& thread) {
    tracee::Thread& traced = task.process.threads().at(thread.index);
    FERRY_TRY(const auto area, state::cpu::load_extended(thread.core->thread_info().fpregs()));
    FERRY_CHECK(traced.set_extended_state(area));
    auto regs = state::cpu::load_registers(thread.core->thread_info().gpregs());
    regs.orig_rax = ~0ULL;
    FERRY_CHECK(traced.set_registers(regs));
    return traced.set_signal_mask(thread.index == 0 ? thread.core->tc().blk_sigset()
                                                    : thread.core->thread_core().blk_sigset());
  }

  const RestoreOptions& options_;
  Listener& listener_;
  RestoreReport report_;
  image::Set set_;
  std::vector<std::unique_ptr<RestoreTask>> tasks_;
  std::unique_ptr<image::PageStore> pages_;
  state::Inside inside_;
  state::OpenFiles files_;
  state::RestoreContext context_{options_, set_, tasks_, inside_, files_, listener_};
  state::NamespaceIds namespaces_;
  Layout layout_;
  std::vector<state::memory::KernelMappings> task_kernel_;
  bool let_go_ = false;
};

}  // namespace

Result<RestoreReport> restore(const RestoreOptions& options, Listener& listener) {
  return Restore(options, listener).run();
}

}  // namespace ferry::engine

#include "engine/restore_story.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>

#include <algorithm>
#include <deque>
#include <set>

#include "base/log.h"
#include "lazy/hand_over.h"
#include "state/binfmt_misc/binfmt_misc.h"
#include "state/cgroup/cgroup.h"
#include "state/cpu/cpu.h"
#include "state/cpu/cpuinfo.h"
#include "state/creds/creds.h"
#include "state/files/fs.h"
#include "state/inet_socket/inet_socket.h"
#include "state/interrupted/interrupted.h"
#include "state/ipc/ipc.h"
#include "state/ipc/undo.h"
#include "state/limits/limits.h"
#include "state/memory/huge_pages.h"
#include "state/memory/pages.h"
#include "state/mount/mount.h"
#include "state/net/net.h"
#include "state/net_gate/net_gate.h"
#include "state/numa/numa.h"
#include "state/pidns/pidns.h"
#include "state/seccomp/seccomp.h"
#include "state/signals/signals.h"
#include "state/thread_area/thread_area.h"
#include "state/timens/timens.h"
#include "state/timers/timers.h"
#include "state/uts/uts.h"
#include "sys/file.h"
#include "tracee/let_go.h"

namespace ferry::engine {
namespace {

using state::RestoreTask;
using state::RestoreThread;

constexpr std::chrono::seconds kDeathTime{10};
constexpr std::uint32_t kStopped = 3;  // TaskCoreEntry.task_state

// For a main thread that had ended: the first thing it does is to end again.
tracee::Registers exit_at(std::uint64_t syscall_instruction, std::uint32_t exit_code) {
  tracee::Registers regs = state::cpu::load_registers(pb::UserX86RegsEntry());
  regs.cs = 0x33;  // __USER_CS and __USER_DS of x86-64
  regs.ss = 0x2b;
  regs.eflags = 0x202;
  regs.rip = syscall_instruction;
  regs.orig_rax = ~0ULL;
  regs.rax = SYS_exit;
  regs.rdi = exit_code >> 8 & 0xff;
  return regs;
}

Result<void> set_cpu(RestoreTask& task, const RestoreThread& thread, const tracee::Registers& registers) {
  const tracee::Thread& traced = task.process.threads().at(thread.index);
  FERRY_TRY(const auto area, state::cpu::load_extended(thread.core->thread_info().fpregs()));
  FERRY_CHECK(traced.set_extended_state(area));
  FERRY_CHECK(traced.set_registers(registers));
  FERRY_CHECK(state::limits::restore_dispatch(task, thread));
  if (thread.index == 0 && task.core->tc().ferry_leader_ended()) {
    return traced.set_signal_mask(~std::uint64_t{0});  // it has no stack for a handler
  }
  return traced.set_signal_mask(state::signals::blocked_by(task, thread));
}

}  // namespace

RestoreStory::~RestoreStory() {
  if (!let_go_) {
    network_lock_.leave();  // another try may still find the peers waiting
    kill_skeletons(tasks_);
  }
}

Result<void> RestoreStory::tell(Stage stage, bool with_pid) {
  std::optional<HostPid> pid;
  if (with_pid) {
    pid = context_.root().pid;
  }
  FERRY_CHECK(listener_.on({stage, pid, -1}));
  return {};
}

Result<void> RestoreStory::read(image::Set set) {
  set_ = std::move(set);
  FERRY_CHECK(state::cpu::check_cpuinfo(set_, options_.cpu_capability));
  FERRY_TRY(tasks_, read_tree(set_));
  FERRY_TRY(namespaces_, state::NamespaceIds::of(set_));
  FERRY_CHECK(state::memory::check_huge_pages(context_));
  FERRY_CHECK(files_.prepare(context_));
  if (!options_.lazy_pages_socket.empty()) {
    FERRY_TRY(daemon_, lazy::connect_to_daemon(options_.work_dir, options_.lazy_pages_socket));
  }
  laps_.add("read images");
  return {};
}

Result<void> RestoreStory::make_root_world(int controller) {
  RootRequest request;
  request.pid = context_.root().ns_pid();
  request.clone_flags = namespaces_.clone_flags();
  request.sibling = options_.sibling;
  request.controller = controller;
  FERRY_TRY(request.pid_namespace, state::pidns::external_fd(set_, options_));
  if (controller >= 0) {
    FERRY_CHECK(state::Nested::check_single_network(set_));
  }
  if (namespaces_.is_new(state::NsKind::user)) {
    if (controller >= 0) {
      return fail(Kind::unsupported, "a tree with a user namespace of its own cannot be restored ahead of time");
    }
    FERRY_TRY(deputy_, state::userns::Deputy::make());
    request.controller = deputy_.pidfd();
  }
  FERRY_CHECK(make_root(request, context_.root()));
  if (namespaces_.is_new(state::NsKind::user)) {
    FERRY_CHECK(state::userns::restore(context_));
    FERRY_CHECK(deputy_.enter(context_.root().pid));
  }
  FERRY_TRY(layout_, clear_root(context_));
  if (namespaces_.is_new(state::NsKind::user)) {
    FERRY_CHECK(state::userns::become_root(context_));
  }
  FERRY_CHECK(state::timens::restore(context_));
  FERRY_CHECK(nested_.make(context_));
  FERRY_CHECK(state::net::restore(context_));
  if (controller < 0) {
    FERRY_TRY(network_lock_, state::inet_socket::lock_for_restore(context_));
  } else if (namespaces_.is_new(state::NsKind::net)) {
    // Before an interface moves in: the tree may still run elsewhere with the same address.
    FERRY_TRY(const UniqueFd ns, sys::open(fmt::format("/proc/{}/ns/net", context_.root().pid), O_RDONLY));
    FERRY_CHECK(state::net_gate::shut(ns.get()));
  }
  if (request.clone_flags != 0) {
    FERRY_CHECK(tell(Stage::setup_namespaces, true));
  }
  FERRY_CHECK(state::uts::restore(context_));
  FERRY_CHECK(state::ipc::restore(context_));
  FERRY_CHECK(state::cgroup::restore_root(context_));
  FERRY_CHECK(state::mount::restore(context_));
  FERRY_CHECK(state::binfmt_misc::restore(context_));
  if (request.clone_flags != 0) {
    FERRY_CHECK(tell(Stage::post_setup_namespaces));
  }
  laps_.add("root and namespaces");
  return {};
}

Result<void> RestoreStory::take_root(tracee::Thread thread, tracee::Area area, std::uint64_t park,
                                     int controller_pidfd) {
  RestoreTask& root = context_.root();
  const HostPid pid = thread.tid();
  FERRY_CHECK(stop_root(std::move(thread), root));
  root.controller_pidfd = controller_pidfd;
  root.process.inherit_area(area);
  FERRY_TRY(const auto text, sys::read_file(fmt::format("/proc/{}/maps", pid)));
  FERRY_TRY(const auto now, sys::parse_maps(text));
  layout_ = {area, park, state::memory::find_kernel_mappings(now)};
  FERRY_CHECK(check_layout(context_, layout_));
  FERRY_CHECK(lock_ahead());
  return inside_.enter(pid);
}

// A namespace of the tree's own is shut wholly since it was made.
Result<void> RestoreStory::lock_ahead() {
  ahead_of_time_ = true;
  FERRY_CHECK(nested_.hold_own_network(context_));
  if (!namespaces_.is_new(state::NsKind::net)) {
    FERRY_TRY(network_lock_, state::inet_socket::lock_for_restore(context_));
  } else if (!gate_) {
    FERRY_TRY(const UniqueFd ns, sys::open(fmt::format("/proc/{}/ns/net", context_.root().pid), O_RDONLY));
    FERRY_TRY(gate_, state::net_gate::Gate::hang(ns.get()));
  }
  return {};
}

Result<void> RestoreStory::open_pages(int images_dir) {
  if (pages_ == nullptr) {
    FERRY_TRY(auto pages, image::PageStore::open(set_, images_dir));
    pages_ = std::make_unique<image::PageStore>(std::move(pages));
  }
  return {};
}

Result<void> RestoreStory::grow(int images_dir) {
  if (images_dir >= 0 && !daemon_ && tasks_.size() > 1) {
    FERRY_CHECK(open_pages(images_dir));
    inheritance_.emplace(*pages_, layout_.taken());
  }
  FERRY_CHECK(grow_tree(context_, layout_, inheritance_ ? &*inheritance_ : nullptr));
  laps_.add("processes");
  return make_all_threads();
}

Result<void> RestoreStory::make_all_threads() {
  if (ahead_of_time_) {
    FERRY_TRY(not_before_, state::timens::not_before(context_));
  }
  FERRY_CHECK(nested_.enter(context_));
  FERRY_CHECK(state::timens::enter(context_));
  FERRY_CHECK(state::cgroup::restore(context_));
  for (auto& task : tasks_) {
    if (task->mm != nullptr) {
      FERRY_CHECK(make_threads(*task));
    }
  }
  FERRY_CHECK(state::cgroup::restore_threads(context_));
  laps_.add("threads");
  return {};
}

Result<void> RestoreStory::dress(int images_dir, Latecomers* late) {
  late_ = late;
  FERRY_CHECK(open_pages(images_dir));
  FERRY_CHECK(files_.open_all(context_));
  FERRY_CHECK(state::mount::finish(context_));
  laps_.add("open files");
  FERRY_CHECK(build_memory());
  laps_.add("memory");
  FERRY_CHECK(state::ipc::finish(context_));
  const auto place = [&](RestoreTask& task, tracee::Batch& batch) -> Result<void> {
    task.process.set_end_signal(state::signals::end_of_batch(state::signals::pending_in(task), 0));
    FERRY_CHECK(state::memory::finish(task, context_, batch));
    return state::fs::restore(task, context_, batch);
  };
  FERRY_CHECK(side_by_side("program and directories", place));
  // A shared table once all have fetched from it what they needed: only one of them can fill it.
  std::set<std::uint32_t> tables;
  for (auto& task : tasks_) {
    if (task->mm != nullptr && tables.insert(task->ids->files_id()).second) {
      FERRY_CHECK(files_.install(context_, *task).during("restoring pid {}", task->ns_pid()));
    }
  }
  FERRY_CHECK(dress_tasks());
  laps_.add("attributes");
  return files_.complete(context_);
}

// One batch in every process that is not a zombie.
Result<void> RestoreStory::side_by_side(const char* what,
                                        const std::function<Result<void>(RestoreTask&, tracee::Batch&)>& prepare) {
  std::deque<tracee::Batch> batches;
  std::vector<tracee::Process::Work> work;
  for (auto& task : tasks_) {
    if (task->mm == nullptr) {
      continue;
    }
    FERRY_CHECK(prepare(*task, batches.emplace_back()).during("restoring pid {}", task->ns_pid()));
    if (!batches.back().empty()) {
      work.push_back({&task->process, &batches.back()});
    }
  }
  return tracee::Process::run_side_by_side(work).during("{}", what);
}

Result<void> RestoreStory::tell_daemon() { return daemon_ ? lazy::send_end(daemon_.get()) : Result<void>(); }

// In this order: what needs privileges before they go, what takes effect at once after what it would
// hinder, timers last because they run from then on.
Result<void> RestoreStory::dress_tasks() {
  const auto attributes = [&](RestoreTask& task, tracee::Batch& batch) -> Result<void> {
    FERRY_CHECK(state::signals::restore(task, context_, batch));
    FERRY_CHECK(state::ipc::restore_undos(task, context_, batch));
    FERRY_CHECK(state::limits::restore(task, context_, batch));
    FERRY_CHECK(state::cpu::restore(task, batch));
    // One thread does everything in one go.
    return task.threads.size() == 1 ? dress_thread(task, task.threads.front(), batch) : Result<void>();
  };
  FERRY_CHECK(side_by_side("process attributes", attributes));
  for (auto& task : tasks_) {
    if (task->mm != nullptr && task->threads.size() > 1) {
      FERRY_CHECK(dress_threads(*task).during("restoring pid {}", task->ns_pid()));
    }
  }
  const auto timers = [&](RestoreTask& task, tracee::Batch& batch) -> Result<void> {
    FERRY_CHECK(state::creds::restore_dumpable(task, batch));
    return state::timers::restore(task, context_, batch);
  };
  return side_by_side("timers", timers);
}

Result<void> RestoreStory::dress_thread(RestoreTask& task, RestoreThread& thread, tracee::Batch& batch) {
  FERRY_CHECK(state::thread_area::restore_thread(task, thread, context_, batch));
  FERRY_CHECK(state::signals::restore_thread(task, thread, context_, batch));
  FERRY_CHECK(state::limits::restore_thread(task, thread, context_, batch));
  FERRY_CHECK(state::numa::restore_thread(task, thread, batch));
  FERRY_CHECK(state::seccomp::restore_thread(task, thread, context_, batch));
  return state::creds::restore_thread(task, thread, context_, batch);
}

Result<void> RestoreStory::dress_threads(RestoreTask& task) {
  std::vector<tracee::Batch> of_threads(task.threads.size());
  std::vector<tracee::Process::Job> jobs;
  for (RestoreThread& thread : task.threads) {
    tracee::Batch& batch = of_threads[thread.index];
    FERRY_CHECK(dress_thread(task, thread, batch));
    jobs.push_back({&task.process.threads().at(thread.index), &batch});
  }
  FERRY_CHECK(task.process.run_all(jobs).during("thread attributes"));
  return {};
}

// Calls to continue are primed while the batch areas are there; then these go, and the threads get their
// registers.
Result<void> RestoreStory::finish_threads() {
  std::vector<tracee::Process::Unmapping> unmapping;
  std::map<const RestoreTask*, std::vector<tracee::Registers>> registers;
  for (auto& task : tasks_) {
    if (task->mm == nullptr) {
      continue;
    }
    const auto& kernel = kernel_.at(task.get());
    FERRY_TRY(const std::uint64_t at, task->process.find_syscall(kernel.vdso.start, kernel.vdso.size));
    unmapping.push_back({&task->process, at});
    for (RestoreThread& thread : task->threads) {
      if (thread.index == 0 && task->core->tc().ferry_leader_ended()) {
        registers[task.get()].push_back(exit_at(at, task->core->tc().exit_code()));
        continue;
      }
      const auto saved = state::cpu::load_registers(thread.core->thread_info().gpregs());
      FERRY_TRY(auto regs, state::interrupted::prime(*task, thread, saved));
      FERRY_CHECK(state::thread_area::settle_rseq(*task, thread, regs));
      registers[task.get()].push_back(regs);
    }
  }
  laps_.add("calls to continue");
  FERRY_CHECK(tracee::Process::unmap_side_by_side(unmapping));
  for (auto& task : tasks_) {
    for (RestoreThread& thread : task->threads) {
      FERRY_CHECK(
          set_cpu(*task, thread, registers[task.get()][thread.index]).during("registers of thread {}", thread.ns_tid));
    }
  }
  laps_.add("registers");
  return ahead_of_time_ ? state::timens::wait_until(not_before_) : Result<void>();
}

// The point of no return.
Result<void> RestoreStory::let_go() {
  FERRY_CHECK(open_up());
  return detach();
}

// ptrace(2): the options of every thread are its own.
Result<void> RestoreStory::outlive_us() {
  for (auto& task : tasks_) {
    for (auto& thread : task->process.threads()) {
      if (thread.tid().value != 0) {  // a process that has ended is not traced any more
        FERRY_CHECK(thread.set_options(kOutlivingOptions));
      }
    }
  }
  return {};
}

Result<void> RestoreStory::open_up() {
  laps_.skip();
  if (namespaces_.is_new(state::NsKind::net)) {
    (void)tell(Stage::network_unlock);
  }
  FERRY_CHECK(network_lock_.release());
  if (gate_) {
    FERRY_CHECK(gate_.let_pass());
  }
  laps_.add("open the network");
  FERRY_CHECK(files_.resume(context_));
  laps_.add("resume connections");
  (void)tell(Stage::pre_resume);
  let_go_ = true;
  leftovers_.keep();
  for (auto& task : tasks_) {
    if (task->mm != nullptr && (task->core->tc().task_state() == kStopped || options_.leave_stopped)) {
      const int signal = task->core->tc().has_stop_signo() ? static_cast<int>(task->core->tc().stop_signo()) : SIGSTOP;
      ::kill(task->pid.value, options_.leave_stopped ? SIGSTOP : signal);
    }
  }
  return {};
}

Result<void> RestoreStory::detach() {
  std::vector<tracee::Process*> processes;
  for (auto& task : tasks_) {
    processes.push_back(&task->process);
  }
  FERRY_CHECK(tracee::let_go(processes, tracee::Deadline(kDeathTime)));
  laps_.add("let go");
  (void)tell(Stage::post_resume);
  return {};
}

Result<void> RestoreStory::clean_up() {
  gate_ = {};
  if (ahead_of_time_ && namespaces_.is_new(state::NsKind::net)) {
    FERRY_TRY(const UniqueFd ns, sys::open(fmt::format("/proc/{}/ns/net", context_.root().pid), O_RDONLY));
    return state::net_gate::open(ns.get());
  }
  return {};
}

Result<void> RestoreStory::put_root_to_sleep(std::vector<int> keep) {
  RestoreTask& root = context_.root();
  keep.push_back(root.controller_pidfd);
  std::sort(keep.begin(), keep.end());
  tracee::Batch close;
  int from = 0;
  for (const int fd : keep) {
    if (fd > from) {
      close.must("closing inherited descriptors", SYS_close_range, {from, fd - 1, 0});
    }
    from = fd + 1;
  }
  close.must("closing inherited descriptors", SYS_close_range, {from, ~0U, 0});
  FERRY_CHECK(root.process.run(root.leader(), close));
  tracee::Batch sleep;
  sleep.may(SYS_pause, {});
  FERRY_CHECK(root.process.leave_in(root.leader(), sleep));
  let_go_ = true;
  leftovers_.keep();
  return {};
}

}  // namespace ferry::engine

#include <linux/ptrace.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

#include "base/log.h"
#include "engine/numbers.h"
#include "engine/restore_tree.h"
#include "state/memory/memory.h"
#include "sys/file.h"

namespace ferry::engine {
namespace {

constexpr std::chrono::seconds kBirthTime{10};
constexpr std::size_t kAreaSize = 16U << 20;
// linux/ptrace.h, spelled out because it cannot be included beside sys/ptrace.h.
constexpr unsigned long kExitKill = 1 << 20;

}  // namespace

Result<void> make_root(const RootRequest& request, state::RestoreTask& root) {
  UniqueFd controller;
  if (request.controller >= 0) {
    FERRY_TRY(controller, sys::duplicate(request.controller));
  } else {
    controller = UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, ::getpid(), 0)));
    if (!controller) {
      return sys_fail("pidfd_open(self)");
    }
  }
  // setns(2): a pid namespace applies to children made from now on.
  if (request.pid_namespace && ::setns(*request.pid_namespace, CLONE_NEWPID) != 0) {
    return sys_fail("setns(external pid namespace)");
  }
  const pid_t wanted = request.pid.value;
  clone_args args{};
  args.flags = request.clone_flags | (request.sibling ? std::uint64_t{CLONE_PARENT} : 0);
  // clone(2): with CLONE_PARENT the exit signal is the one that our own parent gets from us.
  args.exit_signal = request.sibling ? 0 : SIGCHLD;
  args.set_tid = reinterpret_cast<std::uint64_t>(&wanted);
  args.set_tid_size = 1;
  long child = ::syscall(SYS_clone3, &args, sizeof args);
  const Numbers ours;
  for (Vacancy vacancy; child < 0 && errno == EEXIST && vacancy.await(ours, request.pid);) {
    child = ::syscall(SYS_clone3, &args, sizeof args);
  }
  if (child < 0) {
    if (errno == EEXIST) {
      return sys_fail(
          fmt::format("process id {} is taken; restore into a pid namespace, or when it is free: clone3", wanted));
    }
    return sys_fail(fmt::format("clone3(pid {}, namespaces {:#x})", wanted, request.clone_flags));
  }
  if (child == 0) {
    for (;;) {
      ::syscall(SYS_pause);  // until we are seized, and for ever should that fail: then SIGKILL comes
    }
  }
  auto seized = seize_root(HostPid(static_cast<pid_t>(child)));
  if (!seized.has_value()) {
    ::kill(static_cast<pid_t>(child), SIGKILL);
    return Result<void>(tl::unexpected(std::move(seized).error()));
  }
  FERRY_CHECK(stop_root(std::move(*seized), root));
  root.controller_pidfd = controller.get();  // fork(2) copied it; ours is closed here, the skeleton's stays
  return {};
}

Result<tracee::Thread> seize_root(HostPid pid) { return tracee::Thread::seize(pid, kOutlivingOptions | kExitKill); }

Result<void> stop_root(tracee::Thread thread, state::RestoreTask& root) {
  const HostPid pid = thread.tid();
  std::vector<tracee::Thread> threads;
  threads.push_back(std::move(thread));
  FERRY_TRY(root.process, tracee::Process::of(pid, std::move(threads)));
  root.process.set_disposable();
  root.pid = pid;
  root.threads.front().tid = pid;
  FERRY_CHECK(root.leader().interrupt());
  FERRY_CHECK(root.leader().wait(tracee::Deadline(kBirthTime)).during("stopping the root skeleton {}", pid));
  return {};
}

std::vector<sys::PageRange> Layout::taken() const {
  std::vector<sys::PageRange> out{{area.base, park + kParkSize}};
  for (const auto& piece : kernel.vvar) {
    out.push_back({piece.start, piece.start + piece.size});
  }
  if (kernel.vdso.size != 0) {
    out.push_back({kernel.vdso.start, kernel.vdso.start + kernel.vdso.size});
  }
  return out;
}

Result<void> check_layout(const state::RestoreContext& context, const Layout& layout) {
  for (const auto& task : context.tasks) {
    for (int i = 0; task->mm != nullptr && i < task->mm->vmas_size(); ++i) {
      const auto& vma = task->mm->vmas(i);
      if (vma.start() < layout.park + kParkSize && vma.end() > layout.area.base &&
          (vma.status() & state::memory::kVsyscall) == 0) {
        return fail(Kind::unsupported, "pid {} has mapped {:x}-{:x}, where its skeleton's work area is", task->ns_pid(),
                    vma.start(), vma.end());
      }
    }
  }
  return {};
}

Result<Layout> clear_root(state::RestoreContext& context) {
  state::RestoreTask& root = context.root();
  FERRY_TRY(const auto text, sys::read_file(fmt::format("/proc/{}/maps", root.pid)));
  FERRY_TRY(const auto now, sys::parse_maps(text));
  Layout layout;
  layout.kernel = state::memory::find_kernel_mappings(now);
  FERRY_TRY(const std::uint64_t hole, state::memory::find_hole(context, now, kAreaSize + kParkSize));
  layout.park = hole + kAreaSize;
  FERRY_CHECK(root.process.map_area(kAreaSize, hole, layout.kernel.vdso.start, layout.kernel.vdso.size));
  layout.area = root.process.area();

  tracee::Batch batch;
  // fork(2) copied the registration of restartable sequences; once its memory is gone the kernel would
  // send SIGSEGV at every return to user mode (rseq in kernel/rseq.c).
  ptrace_rseq_configuration rseq{};
  const long size = ::syscall(SYS_ptrace, PTRACE_GET_RSEQ_CONFIGURATION, root.pid.value, sizeof rseq, &rseq);
  if (size == static_cast<long>(sizeof rseq) && rseq.rseq_abi_pointer != 0) {
    batch.must("rseq(unregister)", SYS_rseq, {rseq.rseq_abi_pointer, rseq.rseq_abi_size, 1, rseq.signature});
  }
  batch.must("set_robust_list", SYS_set_robust_list, {0, 24});
  batch.must("set_tid_address", SYS_set_tid_address, {0});
  state::memory::add_clearing(batch, layout.area, layout.kernel);
  FERRY_CHECK(root.process.run(root.leader(), batch).during("emptying the root skeleton"));
  return layout;
}

void kill_skeletons(std::vector<std::unique_ptr<state::RestoreTask>>& tasks) {
  std::vector<tracee::Thread*> threads;
  for (auto& task : tasks) {
    for (auto& thread : task->process.threads()) {
      threads.push_back(&thread);
    }
    if (task->pid.value != 0 && !task->process.threads().empty() && task->leader().tid().value != 0) {
      ::kill(task->pid.value, SIGKILL);
    }
  }
  if (auto done = tracee::await_end(threads, tracee::Deadline(kBirthTime)); !done.has_value()) {
    log::error(done.error());
  }
}

}  // namespace ferry::engine

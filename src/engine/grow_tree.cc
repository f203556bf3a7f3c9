#include <linux/sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <memory>
#include <set>
#include <span>

#include "base/log.h"
#include "engine/birth.h"
#include "engine/numbers.h"
#include "engine/restore_tree.h"
#include "sys/file.h"

namespace ferry::engine {
namespace {

using state::RestoreTask;
using state::RestoreThread;

constexpr std::chrono::seconds kBirthTime{30};
constexpr int kNumbersToTry = 1000;
constexpr std::size_t kClonesPerBatch = 10'000;

// Somebody who lives only while the tree is being made.
struct Helper {
  Helper() = default;
  Helper(const Helper&) = delete;
  Helper& operator=(const Helper&) = delete;
  ~Helper() {
    if (pid.value != 0 && !process.threads().empty() && process.leader().tid().value != 0) {
      ::kill(pid.value, SIGKILL);
      process.leader().forget();  // the kernel lets go of the dead
    }
  }
  HostPid pid;
  NsPid ns_pid;
  std::size_t parent = 0;  // a person or helper of the plan
  tracee::Process process;
};

class Grower {
 public:
  Grower(state::RestoreContext& context, const Layout& layout, state::memory::Inheritance* inheritance)
      : context_(context), layout_(layout), inheritance_(inheritance) {}

  Result<void> run() {
    const RestoreTask& root = context_.root();
    FERRY_TRY(numbers_, Numbers::of(root.pid));
    FERRY_TRY(plan_, plan_births(persons()));
    for (const std::uint32_t number : plan_.helpers) {
      helpers_.push_back(std::make_unique<Helper>());
      helpers_.back()->ns_pid = NsPid(static_cast<pid_t>(number));
    }
    outer_group_ = ::getpgid(root.pid.value);
    made_by_.resize(plan_.persons + helpers_.size());
    for (const BirthStep& step : plan_.steps) {
      if (step.what == What::child || step.what == What::sibling) {
        made_by_[step.who].push_back(step.whom);
      }
    }
    for (std::size_t i = 0; i < plan_.steps.size();) {
      if (const std::size_t many = siblings_from(i); many > 1) {
        FERRY_CHECK(clone_many(std::span(plan_.steps).subspan(i, many)));
        i += many;
      } else {
        FERRY_CHECK(carry_out(plan_.steps[i++]));
      }
    }
    return bury_zombies();
  }

 private:
  using What = BirthStep::What;

  std::vector<Person> persons() {
    std::map<std::uint32_t, std::size_t> by_pid;
    std::vector<Person> out;
    for (const auto& task : context_.tasks) {
      Person p;
      p.pid = task->entry->pid();
      p.pgid = task->entry->pgid();
      p.sid = task->entry->sid();
      if (task->parent != nullptr) {
        p.parent = by_pid.at(task->parent->entry->pid());
      }
      if (task->core->tc().has_ferry_exit_signal()) {
        p.exit_signal = task->core->tc().ferry_exit_signal();
      }
      by_pid.emplace(p.pid, out.size());
      taken_.insert(p.pid);
      taken_.insert(p.pgid);
      taken_.insert(p.sid);
      for (const RestoreThread& thread : task->threads) {
        taken_.insert(static_cast<std::uint32_t>(thread.ns_tid.value));
      }
      out.push_back(p);
    }
    return out;
  }

  [[nodiscard]] bool is_helper(std::size_t i) const { return i >= plan_.persons; }
  RestoreTask& task(std::size_t i) { return *context_.tasks[i]; }
  Helper& helper(std::size_t i) { return *helpers_[i - plan_.persons]; }
  tracee::Process& process(std::size_t i) { return is_helper(i) ? helper(i).process : task(i).process; }
  HostPid& pid(std::size_t i) { return is_helper(i) ? helper(i).pid : task(i).pid; }
  NsPid ns_pid(std::size_t i) { return is_helper(i) ? helper(i).ns_pid : task(i).ns_pid(); }

  Result<void> call(std::size_t who, const char* what, long number, std::initializer_list<tracee::Argument> arguments) {
    tracee::Batch batch;
    batch.must(what, number, arguments);
    FERRY_CHECK(process(who).run(process(who).leader(), batch).during("making pid {} what it was", ns_pid(who)));
    return {};
  }

  Result<void> carry_out(const BirthStep& step) {
    switch (step.what) {
      case What::child:
        return clone(step.who, step.whom, 0);
      case What::sibling:
        return clone(step.who, step.whom, CLONE_PARENT);
      case What::lead: {
        tracee::Batch batch;
        batch.may(SYS_setsid, {});  // the init of a new pid namespace may be a leader already
        FERRY_CHECK(process(step.who).run(process(step.who).leader(), batch));
        return {};
      }
      case What::group:
        return call(step.who, "setpgid", SYS_setpgid,
                    {0, step.group != 0 ? static_cast<pid_t>(step.group) : outer_group_});
      case What::reaper_on:
        return call(step.who, "prctl(PR_SET_CHILD_SUBREAPER)", SYS_prctl, {PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0});
      case What::reaper_off:
        return call(step.who, "prctl(PR_SET_CHILD_SUBREAPER)", SYS_prctl, {PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0});
      case What::end:
        return end(step.who, step.whom);
    }
    return {};
  }

  // What the child has in common with who makes it.
  std::uint64_t shared_with(std::size_t from, std::size_t child) {
    if (is_helper(from) || is_helper(child)) {
      return 0;
    }
    const auto* a = task(from).ids;
    const auto* b = task(child).ids;
    if (a == nullptr || b == nullptr) {
      return 0;
    }
    return (a->files_id() == b->files_id() ? std::uint64_t{CLONE_FILES} : 0) |
           (a->fs_id() == b->fs_id() ? std::uint64_t{CLONE_FS} : 0);
  }

  // The number that a helper gets when any will do: one that nobody of the tree has.
  NsPid spare_number() {
    while (taken_.contains(next_spare_)) {
      ++next_spare_;
    }
    return NsPid(static_cast<pid_t>(next_spare_++));
  }

  // Into the batch of who makes it.
  tracee::Value add_clone(std::size_t from, std::size_t child, NsPid wanted, std::uint64_t flags,
                          tracee::Batch& batch) {
    clone_args args{};
    args.flags = CLONE_PTRACE | flags | shared_with(from, child);
    const int signal = is_helper(child) || !task(child).core->tc().has_ferry_exit_signal()
                           ? SIGCHLD
                           : task(child).core->tc().ferry_exit_signal();
    args.exit_signal = flags == 0 ? static_cast<std::uint64_t>(signal) : 0;
    args.set_tid_size = 1;
    const auto number = batch.object(wanted.value);
    const auto at = batch.object(args);
    batch.point(at, offsetof(clone_args, set_tid), number);
    return batch.may(SYS_clone3, {at, sizeof args});
  }

  static sys_fail not_made(std::int64_t reply, NsPid wanted) {
    return {static_cast<int>(-reply), reply == -EEXIST
                                          ? fmt::format("process id {} is taken; restore into a pid namespace, "
                                                        "or when it is free: clone3",
                                                        wanted)
                                          : fmt::format("clone3(process {})", wanted)};
  }

  // Who gets their memory from that one, by way of helpers as well.
  void add_heirs(std::size_t of, std::vector<RestoreTask*>& out) {
    for (const std::size_t child : made_by_[of]) {
      if (is_helper(child)) {
        add_heirs(child, out);
      } else if (task(child).mm != nullptr) {
        out.push_back(&task(child));
      }
    }
  }

  // Once, before anybody is made by that one.
  Result<void> leave_memory(std::size_t from) {
    if (inheritance_ == nullptr || is_helper(from) || task(from).mm == nullptr || !leaving_.insert(from).second) {
      return {};
    }
    std::vector<RestoreTask*> heirs;
    add_heirs(from, heirs);
    return inheritance_->prepare(task(from), heirs).during("memory that pid {} shares", ns_pid(from));
  }

  // A process that was just cloned, which we trace from its first instruction on.
  Result<void> take(std::size_t from, std::size_t child, HostPid parent) {
    FERRY_TRY(pid(child), numbers_.find(ns_pid(child), parent));
    std::vector<tracee::Thread> threads;
    threads.push_back(tracee::Thread::adopt(pid(child)));
    FERRY_TRY(process(child), tracee::Process::of(pid(child), std::move(threads)));
    FERRY_CHECK(
        process(child).leader().wait(tracee::Deadline(kBirthTime)).during("first stop of process {}", ns_pid(child)));
    process(child).inherit_area(layout_.area);
    process(child).set_disposable();
    if (inheritance_ != nullptr) {
      inheritance_->pass_on(process(from), process(child));
    }
    if (!is_helper(child)) {
      task(child).controller_pidfd = context_.root().controller_pidfd;
      if (!task(child).threads.empty()) {
        task(child).threads.front().tid = pid(child);
      }
    }
    return {};
  }

  Result<void> clone(std::size_t from, std::size_t child, std::uint64_t flags) {
    FERRY_CHECK(leave_memory(from));
    const bool any_number = is_helper(child) && helper(child).ns_pid.value == 0;
    Vacancy vacancy;
    for (int tries = 0;; ++tries) {
      const NsPid wanted = any_number ? spare_number() : ns_pid(child);
      tracee::Batch batch;
      const tracee::Value made = add_clone(from, child, wanted, flags, batch);
      FERRY_TRY(const tracee::Replies replies,
                process(from).run(process(from).leader(), batch).during("making process {}", wanted));
      if (replies[made] >= 0) {
        if (is_helper(child)) {
          helper(child).ns_pid = wanted;
          helper(child).parent = from;
        }
        break;
      }
      if (replies[made] != -EEXIST || (any_number ? tries == kNumbersToTry : !vacancy.await(numbers_, wanted))) {
        return not_made(replies[made], wanted);
      }
    }
    return take(from, child, flags == 0 ? pid(from) : parent_of_sibling(from));
  }

  // How many of the next steps make children of one process that all can be made in one batch.
  std::size_t siblings_from(std::size_t first) {
    std::size_t end = first;
    while (end < plan_.steps.size() && end - first < kClonesPerBatch && plan_.steps[end].what == What::child &&
           plan_.steps[end].who == plan_.steps[first].who && !is_helper(plan_.steps[end].whom)) {
      ++end;
    }
    return end - first;
  }

  // Those that were made before one could not be; what has such a number and is not ours stays alone.
  void end_some(std::span<const BirthStep> steps) {
    for (const BirthStep& step : steps) {
      const auto found = numbers_.find(ns_pid(step.whom), pid(step.who));
      siginfo_t info{};
      if (found.has_value() &&
          ::waitid(P_PID, static_cast<id_t>(found->value), &info, WSTOPPED | WNOHANG | WNOWAIT | __WALL) == 0) {
        ::kill(found->value, SIGKILL);
        (void)::waitpid(found->value, nullptr, __WALL);
      }
    }
  }

  Result<void> clone_many(std::span<const BirthStep> steps) {
    const std::size_t from = steps.front().who;
    FERRY_CHECK(leave_memory(from));
    std::vector<BirthStep> left(steps.begin(), steps.end());
    for (Vacancy vacancy; !left.empty();) {
      tracee::Batch batch;
      std::vector<tracee::Value> values;
      for (const BirthStep& step : left) {
        values.push_back(add_clone(from, step.whom, ns_pid(step.whom), 0, batch));
      }
      auto made = process(from).run(process(from).leader(), batch);
      if (!made.has_value()) {
        end_some(steps);
        return Result<void>(tl::unexpected(std::move(made).error()))
            .during("making {} children of pid {}", steps.size(), ns_pid(from));
      }
      std::vector<BirthStep> taken;
      for (std::size_t i = 0; i < left.size(); ++i) {
        const std::int64_t reply = (*made)[values[i]];
        if (reply == -EEXIST) {
          taken.push_back(left[i]);
        } else if (reply < 0) {
          end_some(steps);
          return not_made(reply, ns_pid(left[i].whom));
        }
      }
      left = std::move(taken);
      if (!left.empty() && !vacancy.await(numbers_, ns_pid(left.front().whom))) {
        end_some(steps);
        return not_made(-EEXIST, ns_pid(left.front().whom));
      }
    }
    for (const BirthStep& step : steps) {
      FERRY_CHECK(take(from, step.whom, pid(from)));
    }
    return {};
  }

  HostPid parent_of_sibling(std::size_t from) {
    return is_helper(from) ? pid(helper(from).parent) : task(from).parent->pid;
  }

  // Waits until a process that was let go to its end has come to it.
  Result<void> await_end(tracee::Process& of, NsPid number) {
    const tracee::Deadline deadline(kBirthTime);
    while (of.leader().tid().value != 0) {
      auto stop = of.leader().wait(deadline);
      if (!stop.has_value()) {
        if (stop.error().kind != Kind::gone) {
          return Result<void>(tl::unexpected(std::move(stop).error())).during("the end of process {}", number);
        }
        break;
      }
      FERRY_CHECK(of.leader().resume(PTRACE_CONT, stop->why == tracee::Stop::Why::signal ? stop->signal : 0));
    }
    return {};
  }

  // Throws away the signals that the ends of children sent, which their parent had got long ago: setting an
  // action that ignores a signal does so (sigaction(2), notes).
  static void add_forgetting(int signal, tracee::Batch& batch) {
    struct {
      std::uint64_t handler, flags, restorer, mask;
    } action{1, 0, 0, 0};  // SIG_IGN
    batch.must("rt_sigaction(SIG_IGN)", SYS_rt_sigaction, {signal, batch.object(action), 0, sizeof action.mask});
    action.handler = 0;  // SIG_DFL
    batch.must("rt_sigaction(SIG_DFL)", SYS_rt_sigaction, {signal, batch.object(action), 0, sizeof action.mask});
  }

  // There was one already, if at all.
  static Result<void> forbid_core_file(HostPid pid) {
    rlimit limit{};
    if (::prlimit(pid.value, RLIMIT_CORE, nullptr, &limit) != 0) {
      return sys_fail(fmt::format("prlimit({})", pid));
    }
    limit.rlim_cur = 0;
    if (::prlimit(pid.value, RLIMIT_CORE, &limit, nullptr) != 0) {
      return sys_fail(fmt::format("prlimit({})", pid));
    }
    return {};
  }

  Result<void> end(std::size_t parent, std::size_t whom) {
    tracee::Batch exit;
    exit.may(SYS_exit_group, {0});
    FERRY_CHECK(helper(whom).process.start(helper(whom).process.leader(), exit));
    FERRY_CHECK(await_end(helper(whom).process, ns_pid(whom)));
    tracee::Batch reap;
    reap.must("wait4", SYS_wait4, {ns_pid(whom).value, 0, __WALL, 0});
    add_forgetting(SIGCHLD, reap);
    FERRY_CHECK(process(parent).run(process(parent).leader(), reap).during("reaping helper {}", ns_pid(whom)));
    return {};
  }

  // A zombie ends here the way it ended there; its parent finds it, and no signal tells of it again.
  Result<void> bury_zombies() {
    std::map<RestoreTask*, std::set<int>> signals;  // by parent
    for (auto& task : context_.tasks) {
      if (task->mm != nullptr) {
        continue;
      }
      const std::uint32_t code = task->core->tc().exit_code();
      const int signal = static_cast<int>(code & 0x7f);
      tracee::Batch batch;
      batch.may(SYS_prctl, {PR_SET_NAME, batch.string(task->core->tc().comm()), 0, 0, 0});
      if (signal == 0) {
        batch.may(SYS_exit_group, {code >> 8 & 0xff});
      } else {
        FERRY_CHECK(forbid_core_file(task->pid));
        if (signal != SIGKILL) {
          add_forgetting(signal, batch);  // the disposition came with our process
        }
        batch.may(SYS_kill, {task->entry->pid(), signal});
      }
      FERRY_CHECK(task->leader().set_signal_mask(0));
      FERRY_CHECK(task->process.start(task->leader(), batch));
      FERRY_CHECK(await_end(task->process, task->ns_pid()));
      signals[task->parent].insert(task->core->tc().has_ferry_exit_signal() ? task->core->tc().ferry_exit_signal()
                                                                            : SIGCHLD);
    }
    for (const auto& [parent, set] : signals) {
      tracee::Batch batch;
      for (const int signal : set) {
        if (signal != 0) {
          add_forgetting(signal, batch);
        }
      }
      if (!batch.empty()) {
        FERRY_CHECK(parent->process.run(parent->leader(), batch));
      }
    }
    return {};
  }

  state::RestoreContext& context_;
  const Layout& layout_;
  state::memory::Inheritance* inheritance_;  // may be null
  std::vector<std::vector<std::size_t>> made_by_;
  std::set<std::size_t> leaving_;
  Numbers numbers_;
  BirthPlan plan_;
  std::vector<std::unique_ptr<Helper>> helpers_;
  std::set<std::uint32_t> taken_;
  std::uint32_t next_spare_ = 300;  // as the kernel itself starts again there (RESERVED_PIDS)
  pid_t outer_group_ = 0;
};

}  // namespace

Result<void> grow_tree(state::RestoreContext& context, const Layout& layout, state::memory::Inheritance* inheritance) {
  return Grower(context, layout, inheritance).run();
}

}  // namespace ferry::engine

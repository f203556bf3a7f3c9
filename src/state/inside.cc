#include "state/inside.h"

#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <thread>
#include <utility>

#include "sys/file.h"

namespace ferry::state {

// `work` and `outcome` are the worker's while there is something to do, and the caller's otherwise.
struct Inside::Worker {
  enum Step : int { idle, todo, quit };
  std::atomic<int> step = idle;
  const std::function<Result<void>()>* work = nullptr;
  Result<void> outcome;
  std::atomic<std::int64_t> awake_until = 0;  // on the steady clock
  bool own_fs = false;
  std::atomic<pid_t> tid = 0;
  std::thread thread;

  static std::int64_t now() { return std::chrono::steady_clock::now().time_since_epoch().count(); }

  // Until there is another step than `seen`; the value is that one.
  int await_other_than(int seen) const {
    for (;;) {
      const int current = step.load();
      if (current != seen) {
        return current;
      }
      if (now() < awake_until.load()) {
        ::sched_yield();
      } else {
        step.wait(seen);
      }
    }
  }

  void advance(Step to) {
    step = to;
    step.notify_all();
  }

  void loop() {
    tid = ::gettid();
    while (await_other_than(idle) != quit) {
      outcome = (*work)();
      advance(idle);
    }
  }
};

Inside::Inside() = default;

Inside::~Inside() {
  if (worker_ != nullptr) {
    worker_->advance(Worker::quit);
    worker_->thread.join();
  }
}

Result<void> Inside::run(const std::function<Result<void>()>& work) {
  if (worker_ == nullptr) {
    worker_ = std::make_unique<Worker>();
    worker_->thread = std::thread([w = worker_.get()] { w->loop(); });
  }
  worker_->work = &work;
  worker_->advance(Worker::todo);
  worker_->await_other_than(Worker::todo);
  return std::exchange(worker_->outcome, {});
}

void Inside::stay_awake() {
  if (worker_ != nullptr) {
    worker_->awake_until = Worker::now() + std::chrono::steady_clock::duration(kAwake).count();
  }
}

void Inside::sleep_again() {
  if (worker_ != nullptr) {
    worker_->awake_until = 0;
  }
}

Result<void> Inside::enter_namespaces(HostPid pid) {
  struct Kind {
    const char* name;
    int flag;
    UniqueFd theirs;
  };
  // mnt last: it changes the root directory as well.
  std::array<Kind, 5> kinds{{{"net", CLONE_NEWNET, {}},
                             {"uts", CLONE_NEWUTS, {}},
                             {"ipc", CLONE_NEWIPC, {}},
                             {"cgroup", CLONE_NEWCGROUP, {}},
                             {"mnt", CLONE_NEWNS, {}}}};
  // Opened from our own side: once inside, the worker's /proc shows other processes, or none.
  for (Kind& kind : kinds) {
    FERRY_TRY(kind.theirs, sys::open(fmt::format("/proc/{}/ns/{}", pid, kind.name), O_RDONLY));
  }
  // The worker's own, by the number of its thread; before the first call it is where we are.
  const std::string worker = worker_ == nullptr ? "self" : fmt::format("self/task/{}", worker_->tid.load());
  std::array<bool, 5> differs{};
  for (std::size_t i = 0; i < kinds.size(); ++i) {
    FERRY_TRY(const UniqueFd ours, sys::open(fmt::format("/proc/{}/ns/{}", worker, kinds[i].name), O_RDONLY));
    FERRY_TRY(const auto a, sys::stat_fd(kinds[i].theirs.get(), "namespace"));
    FERRY_TRY(const auto b, sys::stat_fd(ours.get(), "namespace"));
    differs[i] = a.st_ino != b.st_ino;
  }
  std::vector<Joined> joined;
  for (std::size_t i = 0; i < kinds.size(); ++i) {
    if (differs[i]) {
      joined.push_back({kinds[i].theirs.get(), kinds[i].flag});
    }
  }
  return join(joined).during("joining the namespaces of pid {}", pid);
}

Result<void> Inside::join(const std::vector<Joined>& namespaces) {
  return run([&]() -> Result<void> {
    if (!worker_->own_fs) {
      // setns(2): a thread that shares its fs struct cannot change its mount namespace.
      if (::unshare(CLONE_FS) != 0) {
        return sys_fail("unshare(CLONE_FS)");
      }
      worker_->own_fs = true;
    }
    for (const Joined& one : namespaces) {
      if (::setns(one.fd, one.clone_flag) != 0) {
        return sys_fail(fmt::format("setns(kind {:#x})", one.clone_flag));
      }
    }
    return {};
  });
}

Result<void> Inside::enter(HostPid pid) {
  // The root is opened from our own side, where /proc shows the task.
  FERRY_TRY(const UniqueFd root, sys::open(fmt::format("/proc/{}/root", pid), O_PATH | O_DIRECTORY));
  FERRY_CHECK(enter_namespaces(pid));
  return run([&]() -> Result<void> {
    if (::fchdir(root.get()) != 0 || ::chroot(".") != 0) {
      return sys_fail(fmt::format("chroot(root of pid {})", pid));
    }
    return {};
  });
}

}  // namespace ferry::state

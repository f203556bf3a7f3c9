#include "state/inside.h"

#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "sys/file.h"

namespace ferry::state {

struct Inside::Worker {
  std::mutex mutex;
  std::condition_variable changed;
  const std::function<Result<void>()>* work = nullptr;
  std::optional<Result<void>> outcome;
  bool quit = false;
  bool own_fs = false;
  std::atomic<pid_t> tid = 0;
  std::thread thread;

  void loop() {
    std::unique_lock lock(mutex);
    tid = ::gettid();
    changed.notify_all();
    for (;;) {
      changed.wait(lock, [&] { return work != nullptr || quit; });
      if (quit) {
        return;
      }
      const auto* todo = std::exchange(work, nullptr);
      lock.unlock();
      Result<void> result = (*todo)();
      lock.lock();
      outcome = std::move(result);
      changed.notify_all();
    }
  }
};

Inside::Inside() = default;

Inside::~Inside() {
  if (worker_ != nullptr) {
    {
      const std::lock_guard lock(worker_->mutex);
      worker_->quit = true;
    }
    worker_->changed.notify_all();
    worker_->thread.join();
  }
}

Result<void> Inside::run(const std::function<Result<void>()>& work) {
  if (worker_ == nullptr) {
    worker_ = std::make_unique<Worker>();
    worker_->thread = std::thread([w = worker_.get()] { w->loop(); });
  }
  std::unique_lock lock(worker_->mutex);
  worker_->outcome.reset();
  worker_->work = &work;
  worker_->changed.notify_all();
  worker_->changed.wait(lock, [&] { return worker_->outcome.has_value(); });
  return std::move(*worker_->outcome);
}

Result<void> Inside::enter_namespaces(HostPid pid) {
  struct Kind {
    const char* name;
    int flag;
    UniqueFd theirs;
  };
  // mnt last: it changes the root directory as well.
  std::array<Kind, 5> kinds{{{"net", CLONE_NEWNET, {}}, {"uts", CLONE_NEWUTS, {}}, {"ipc", CLONE_NEWIPC, {}},
                             {"cgroup", CLONE_NEWCGROUP, {}}, {"mnt", CLONE_NEWNS, {}}}};
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

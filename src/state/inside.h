// Ordinary code of ours, run with another task's namespaces and root directory.
//
// One OS thread joins the mount, network, uts, ipc and cgroup namespaces of a task (a thread may, once it has
// unshared its fs struct: setns(2)) and then takes its root.  Whatever it opens or makes is in our own
// descriptor table, so a room can create a socket in the container's network, or open a path of the
// container, without a line of code in the container.
// Not joined: pid and user namespaces (setns(2) applies the first to children only).
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "base/error.h"
#include "base/ids.h"
#include "base/unique_fd.h"

namespace ferry::state {

class Inside {
 public:
  Inside();
  ~Inside();
  Inside(const Inside&) = delete;
  Inside& operator=(const Inside&) = delete;

  // Joins the namespaces of `pid` (those that differ from ours) and takes its root directory.
  // May be called again: after a pivot_root, or for another task.
  Result<void> enter(HostPid pid);
  // The same without taking the root: while the mount namespace is still being made.
  Result<void> enter_namespaces(HostPid pid);
  // Joins namespaces given by descriptors; with a mount namespace its root becomes the thread's.
  struct Joined {
    int fd = -1;
    int clone_flag = 0;  // CLONE_NEW*
  };
  Result<void> join(const std::vector<Joined>& namespaces);
  // Runs `work` on that thread and waits for it.  Before the first enter() it runs in our own world.
  Result<void> run(const std::function<Result<void>()>& work);
  // From the next call to sleep_again() the thread looks for work without a pause, and is there at once: to wake a
  // thread takes a tenth of a millisecond on a virtual machine, and every call would be two of them.  For a freeze;
  // it keeps a processor busy, so it ends by itself after kAwake.
  void stay_awake();
  void sleep_again();
  template <class T>
  Result<T> get(const std::function<Result<T>()>& work) {
    std::optional<Result<T>> out;
    FERRY_CHECK(run([&]() -> Result<void> {
      out = work();
      return {};
    }));
    return std::move(*out);
  }

 private:
  static constexpr std::chrono::milliseconds kAwake{50};
  struct Worker;
  std::unique_ptr<Worker> worker_;
};

}  // namespace ferry::state

#include "state/proc_file/dead_process.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <thread>

#include "base/unique_fd.h"
#include "sys/file.h"
#include "sys/proc.h"

namespace ferry::state::proc_file {
namespace {

// clone3(2) from a multi-threaded process: the child may make system calls only.
Result<pid_t> clone_sleeper(pid_t wanted) {
  clone_args args{};
  args.exit_signal = SIGCHLD;
  if (wanted != 0) {
    args.set_tid = reinterpret_cast<std::uintptr_t>(&wanted);
    args.set_tid_size = 1;
  }
  const long pid = ::syscall(SYS_clone3, &args, sizeof args);
  if (pid == 0) {
    for (;;) {
      ::syscall(SYS_pause);
    }
  }
  if (pid < 0) {
    return sys_fail(fmt::format("clone3(pid {})", wanted));
  }
  return static_cast<pid_t>(pid);
}

}  // namespace

Numbers numbers_in(std::string_view path) {
  Numbers out;
  bool after_task = false;
  while (!path.empty()) {
    path.remove_prefix(std::min(path.find_first_not_of('/'), path.size()));
    const std::string_view word = path.substr(0, path.find('/'));
    const auto number = sys::parse_number(word);
    if (number && *number <= 0x7fffffff && (!out.process || after_task)) {
      (out.process ? out.thread : out.process) = static_cast<std::uint32_t>(*number);
      if (out.thread) {
        return out;
      }
    }
    after_task = out.process && word == "task";
    path.remove_prefix(word.size());
  }
  return out;
}

std::string with_pid(const std::string& path, pid_t pid, pid_t other) {
  const Numbers numbers = numbers_in(path);
  if (!numbers.process || (pid == other && *numbers.process == static_cast<std::uint32_t>(pid))) {
    return path;
  }
  const std::string process = fmt::format("/{}", *numbers.process);
  std::string out;
  bool after_task = false, replaced = false;
  for (std::size_t at = 0; at < path.size();) {
    const std::size_t end = std::min(path.find('/', at + 1), path.size());
    const std::string word = path.substr(at, end - at);
    const bool first = !replaced && word == process;
    const bool thread = replaced && after_task && numbers.thread && word == fmt::format("/{}", *numbers.thread);
    out += first || thread ? fmt::format("/{}", other) : word;
    replaced |= first;
    after_task = word == "/task";
    at = end;
  }
  return out;
}

Result<pid_t> make_sleeper(HostPid root, pid_t wanted) {
  FERRY_TRY(const UniqueFd ns, sys::open(fmt::format("/proc/{}/ns/pid", root), O_RDONLY));
  Result<pid_t> made;
  // setns(2): the pid namespace is that of this thread's children, so the thread is one of its own.
  std::thread([&] {
    if (::setns(ns.get(), CLONE_NEWPID) != 0) {
      made = sys_fail(fmt::format("setns(pid namespace of pid {})", root));
      return;
    }
    made = clone_sleeper(wanted);
    if (!made.has_value() && made.error().os_errno == EEXIST) {
      made = clone_sleeper(0);
    }
  }).join();
  return made;
}

DeadProcesses::~DeadProcesses() { (void)end(); }

Result<pid_t> DeadProcesses::make(HostPid root, pid_t wanted) {
  if (const auto known = stands_.find(wanted); known != stands_.end()) {
    return known->second.inner;
  }
  FERRY_TRY(const pid_t ours, make_sleeper(root, wanted));
  stands_[wanted] = {ours, ours};
  FERRY_TRY(const auto text, sys::read_file(fmt::format("/proc/{}/status", ours)));
  FERRY_TRY(const auto status, sys::parse_status(text));
  if (!status.ns_pid.empty()) {
    stands_[wanted].inner = status.ns_pid.back();
  }
  return stands_[wanted].inner;
}

Result<void> DeadProcesses::end() {
  for (const auto& [wanted, stand] : stands_) {
    ::kill(stand.ours, SIGKILL);
    while (::waitpid(stand.ours, nullptr, __WALL) < 0) {
      if (errno != EINTR) {
        return sys_fail(fmt::format("waitpid({})", stand.ours));
      }
    }
  }
  stands_.clear();
  return {};
}

}  // namespace ferry::state::proc_file

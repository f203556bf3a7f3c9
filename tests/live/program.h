// The test body as a process that the harness started, and the directory it has for its files.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "base/unique_fd.h"

namespace ferry::live {

// A directory of one test, removed with everything in it.  It lies on the file system of "/", so that it
// has the same path in a root that is a bind mount of "/".
class Scratch {
 public:
  Scratch();
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  [[nodiscard]] std::string path(const std::string& name) const { return path_ + "/" + name; }
  // "/" bound once more: the root of the pid_namespace flavour, given to criu as --root.
  [[nodiscard]] std::string root() const { return path("root"); }

 private:
  std::string path_;
};

// Gives this process a mount namespace of its own, so that nobody else sees the mounts of the tests.
void make_mounts_private();

enum class Where {
  our_namespaces,
  own_namespaces,      // pid and mnt, with a root of its own
  own_user_namespace,  // the same below a user namespace, whose root is nobody on the host
};

// The body's process.  All failures are exceptions (std::runtime_error) whose text says what was waited for.
class Program {
 public:
  // Starts this program again with the body of one test.
  Program(const Scratch& scratch, const std::string& test, Where where);
  // Kills the tree and waits for its end.
  ~Program();
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  [[nodiscard]] pid_t pid() const { return pid_; }
  // Waits until the body stands at its next checkpoint (true) or has finished (false).
  bool wait_for_checkpoint(std::uint32_t passed);
  // Where it stands it wants a pre-dump only.
  [[nodiscard]] bool wants_pre_dump() const;
  void pass(std::uint32_t passed);
  // Waits until a dump has killed it.
  void wait_for_death();
  // Goes on with the process that was restored from it.
  void become(pid_t pid);
  void kill_tree();

  struct Verdict {
    bool skipped = false;
    std::uint32_t failures = 0;
    std::string text;
  };
  [[nodiscard]] Verdict verdict() const;

 private:
  template <class T>
  T get(std::size_t offset) const;
  void watch();

  const Scratch& scratch_;
  pid_t pid_ = -1;
  UniqueFd pidfd_;
  std::uint64_t gate_ = 0;
};

// Runs a command with its output in a file; its exit status, or 128 + signal.
int run_command(const std::vector<std::string>& words, const std::string& output, std::chrono::seconds limit);

}  // namespace ferry::live

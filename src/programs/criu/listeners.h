// Those who are told of the stages of an operation: the RPC caller, action scripts, the pid file.
#pragma once

#include <string>
#include <vector>

#include "engine/options.h"
#include "programs/criu/rpc_channel.h"

namespace ferry::criu {

// Asks the RPC caller at every stage.  A caller that died makes an error of the stage, so that the
// engine undoes everything: end-of-file is the only sign of a dockerd that was killed.
class RpcListener : public engine::Listener {
 public:
  // Without `notify` the caller is not asked, only looked after.
  RpcListener(RpcChannel channel, bool notify) : channel_(channel), notify_(notify) {}
  Result<engine::Answer> on(const engine::Notice& notice) override;

 private:
  RpcChannel channel_;
  bool notify_;
};

// Runs every script at every stage; query-ext-files, which wants an answer, exists on RPC only.
class ActionScripts : public engine::Listener {
 public:
  // `root`: the tree's root, if it is known from the start (dump).
  ActionScripts(std::vector<std::string> scripts, int images_dir, HostPid root);
  Result<engine::Answer> on(const engine::Notice& notice) override;
  // What the first failing stage's scripts returned, or-ed; criu's own exit status then.
  [[nodiscard]] int failed_status() const { return failed_status_; }

 private:
  std::vector<std::string> scripts_;
  int images_dir_;
  HostPid root_;
  int failed_status_ = 0;
};

// Writes a zero byte when a server listens, and closes the descriptor.
class StatusFd : public engine::Listener {
 public:
  explicit StatusFd(int fd) : fd_(fd) {}
  Result<engine::Answer> on(const engine::Notice& notice) override;

 private:
  int fd_;
};

// Writes the root task's pid before the tree runs, so that a file that cannot be written is an error
// that can still be undone; takes it away again if the restore fails.
class PidFile : public engine::Listener {
 public:
  PidFile(std::string path, int work_dir) : path_(std::move(path)), work_dir_(work_dir) {}
  PidFile(const PidFile&) = delete;
  PidFile& operator=(const PidFile&) = delete;
  ~PidFile() override;
  Result<engine::Answer> on(const engine::Notice& notice) override;
  void keep() { written_ = false; }

 private:
  std::string path_;
  int work_dir_;
  bool written_ = false;
};

// Tells all of them in order and stops at the first error.  Remembers the root task's pid.
class Listeners : public engine::Listener {
 public:
  void add(engine::Listener* listener) { listeners_.push_back(listener); }
  Result<engine::Answer> on(const engine::Notice& notice) override;
  // -1 if no tree was created.
  [[nodiscard]] pid_t root() const { return root_; }

 private:
  std::vector<engine::Listener*> listeners_;
  pid_t root_ = -1;
};

}  // namespace ferry::criu

#include "programs/ferry/engine_dump.h"

#include <fcntl.h>

#include "base/log.h"
#include "base/unique_fd.h"
#include "engine/checkpoint.h"

namespace ferry::program {
namespace {

class WhileFrozen : public engine::Listener {
 public:
  explicit WhileFrozen(const std::function<Result<void>()>& work) : work_(work) {}
  Result<engine::Answer> on(const engine::Notice& notice) override {
    if (notice.stage == engine::Stage::post_dump) {
      FERRY_CHECK(work_());
    }
    return engine::Answer{};
  }

 private:
  const std::function<Result<void>()>& work_;
};

// The log goes to a file as long as the object lives, and then to standard error again.
class LogFile {
 public:
  static Result<LogFile> open(int directory) {
    UniqueFd fd(::openat(directory, "dump.log", O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0600));
    if (!fd) {
      return sys_fail("openat(dump.log)");
    }
    log::configure({.level = log::Level::debug, .fd = fd.get(), .timestamps = true});
    return LogFile(std::move(fd));
  }
  LogFile(LogFile&&) = default;
  LogFile& operator=(LogFile&&) = delete;
  ~LogFile() {
    if (fd_) {
      log::configure({});
    }
  }

 private:
  explicit LogFile(UniqueFd fd) : fd_(std::move(fd)) {}
  UniqueFd fd_;
};

}  // namespace

Result<void> dump_with_engine(const container::DumpRequest& request) {
  FERRY_TRY(const LogFile log_file, LogFile::open(request.images_dir));
  engine::DumpOptions options;
  options.pid = request.pid;
  options.images_dir = request.images_dir;
  options.work_dir = request.images_dir;
  options.root = request.facts.root;
  options.leave_running = request.leave_running;
  options.freeze_cgroup = request.facts.freeze_cgroup;
  // The same words that runc uses, since it is runc that will ask for the restore.
  for (const std::string& path : request.facts.external_mounts) {
    options.external_mounts.push_back({path, path});
  }
  for (const std::string& path : request.facts.masked_files) {
    options.external_mounts.push_back({path, "/dev/null"});
  }
  options.empty_net_namespace = true;
  options.orphan_pts_master = true;
  options.tcp_close = true;
  options.file_locks = true;
  options.ghost_limit = 64U << 20;
  options.cgroup_mode = engine::CgroupMode::soft;
  WhileFrozen listener(request.while_frozen);
  FERRY_CHECK(engine::checkpoint(options, listener));
  return {};
}

}  // namespace ferry::program

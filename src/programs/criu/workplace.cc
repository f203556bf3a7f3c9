#include "programs/criu/workplace.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>

#include "base/log.h"

namespace ferry::criu {
namespace {

Result<UniqueFd> open_directory(const std::string& path, std::string_view what) {
  UniqueFd directory{::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  if (!directory) {
    return Result<UniqueFd>(sys_fail(fmt::format("open({})", path))).during("opening the {}", what);
  }
  return directory;
}

log::Config log_config(const Settings& settings, int fd) {
  const int level = std::clamp(settings.verbosity, 0, static_cast<int>(log::Level::debug));
  // criu(8): time stamps from level 3 on.
  return {.level = static_cast<log::Level>(level), .fd = fd, .timestamps = level >= 3};
}

}  // namespace

Result<Workplace> Workplace::open(const Settings& settings) {
  Workplace place;
  FERRY_TRY(place.images_, open_directory(settings.images_dir.empty() ? "." : settings.images_dir, "images directory"));
  if (!settings.work_dir.empty()) {
    FERRY_TRY(place.work_, open_directory(settings.work_dir, "work directory"));
  }
  if (::fchdir(place.work()) != 0) {
    return sys_fail(fmt::format("fchdir({})", settings.work_dir.empty() ? settings.images_dir : settings.work_dir));
  }
  int log_fd = STDERR_FILENO;
  if (!settings.log_file.empty() && !settings.log_to_stderr) {
    constexpr int kFlags = O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC;
    place.log_ = UniqueFd{::openat(place.work(), settings.log_file.c_str(), kFlags, 0600)};
    if (!place.log_) {
      return Result<Workplace>(sys_fail(fmt::format("openat({})", settings.log_file))).during("opening the log file");
    }
    log_fd = place.log_.get();
  }
  log::configure(log_config(settings, log_fd));
  log::info("ferry {} in the place of criu 4.2, pid {}", FERRY_VERSION, ::getpid());
  return place;
}

Workplace::~Workplace() {
  if (log_) {
    log::configure({});
  }
}

}  // namespace ferry::criu

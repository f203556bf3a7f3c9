#include "base/log.h"

#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <mutex>

namespace ferry::log {
namespace {

// The sink is the one piece of process-wide state: every layer writes to it, and in a child between
// fork and exec it has to go on working, so it is a plain descriptor and one write(2) a line.
struct Sink {
  std::mutex mutex;
  Config config;
  timespec start{};
  std::string first_error;
};
Sink& sink() {
  static Sink instance;
  return instance;
}

}  // namespace

void configure(const Config& config) {
  Sink& s = sink();
  const std::lock_guard lock(s.mutex);
  s.config = config;
  clock_gettime(CLOCK_MONOTONIC, &s.start);
}

bool enabled(Level level) { return level <= sink().config.level; }

void write(Level level, std::string_view text) {
  Sink& s = sink();
  const std::lock_guard lock(s.mutex);
  std::string line;
  if (s.config.timestamps) {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    const long long us = (now.tv_sec - s.start.tv_sec) * 1'000'000LL + (now.tv_nsec - s.start.tv_nsec) / 1000;
    line = fmt::format("({:02}.{:06}) ", us / 1'000'000, us % 1'000'000);
  }
  if (level == Level::warning) {
    line += "Warn  ";
  }
  line += text;
  if (level == Level::error && s.first_error.empty()) {
    s.first_error = std::string(text) + "\n";
  }
  if (level > s.config.level) {
    return;
  }
  line += '\n';
  if (::write(s.config.fd, line.data(), line.size()) < 0) {
    return;  // a full disk must not turn a report of trouble into trouble
  }
}

std::string first_error() {
  Sink& s = sink();
  const std::lock_guard lock(s.mutex);
  return s.first_error;
}

void error(const Error& e) {
  const char* base = std::strrchr(e.file, '/');
  write(Level::error, fmt::format("Error ({}:{}): {}", base != nullptr ? base + 1 : e.file, e.line, e.message()));
}

}  // namespace ferry::log

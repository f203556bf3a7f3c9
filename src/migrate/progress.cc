#include "migrate/progress.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace ferry::migrate {
namespace {

constexpr int kWidth = 24;
constexpr std::chrono::milliseconds kRedraw(100);

}  // namespace

std::string byte_text(std::uint64_t bytes) {
  if (bytes < 1024) {
    return fmt::format("{} bytes", bytes);
  }
  const auto kib = static_cast<double>(bytes) / 1024;
  return kib < 1024 ? fmt::format("{:.1f} KiB", kib) : fmt::format("{:.1f} MiB", kib / 1024);
}

Progress::Progress(int steps, bool quiet) : steps_(steps), quiet_(quiet), terminal_(::isatty(STDOUT_FILENO) == 1) {}

void Progress::clear() {
  if (terminal_ && !quiet_) {
    fmt::print("\r\033[K");
  }
}

void Progress::draw() {
  if (!terminal_ || quiet_ || !open_) {
    return;
  }
  const Phase& phase = phases_.back();
  const int done = std::min(kWidth, static_cast<int>(phases_.size()) * kWidth / std::max(steps_, 1));
  fmt::print("\r\033[K[{}{}] {}{}", std::string(static_cast<std::size_t>(done), '#'),
             std::string(static_cast<std::size_t>(kWidth - done), ' '), phase.name,
             phase.bytes == 0 ? "" : ", " + byte_text(phase.bytes));
  static_cast<void>(std::fflush(stdout));
  drawn_ = Clock::now();
}

void Progress::begin(const std::string& phase) {
  end();
  phases_.push_back({phase, 0, 0});
  open_ = true;
  begun_ = Clock::now();
  draw();
}

void Progress::bytes(std::uint64_t total) {
  phases_.back().bytes = total;
  if (Clock::now() - drawn_ >= kRedraw) {
    draw();
  }
}

void Progress::end() {
  if (!open_) {
    return;
  }
  open_ = false;
  Phase& phase = phases_.back();
  phase.ms = std::chrono::duration<double, std::milli>(Clock::now() - begun_).count();
  if (quiet_) {
    return;
  }
  print(fmt::format("{:<28} {:>9.1f} ms{}\n", phase.name, phase.ms,
                    phase.bytes == 0 ? "" : "   " + byte_text(phase.bytes)));
}

void Progress::print(std::string line) {
  kept_ += std::move(line);
  if (!released_) {
    return;
  }
  clear();
  fmt::print("{}", kept_);
  kept_.clear();
  static_cast<void>(std::fflush(stdout));
}

void Progress::release() {
  released_ = true;
  if (!quiet_) {
    print({});
    draw();
  }
}

void Progress::say(const std::string& text) {
  if (!quiet_) {
    print(text + "\n");
    draw();
  }
}

}  // namespace ferry::migrate

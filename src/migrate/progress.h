// How far a move is, for people: a bar on a terminal, plain lines elsewhere.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace ferry::migrate {

struct Phase {
  std::string name;
  double ms = 0;
  std::uint64_t bytes = 0;
};

class Progress {
 public:
  // `steps`: how many phases there will be.  Silent if `quiet`; the times are kept all the same.
  Progress(int steps, bool quiet);
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress() { clear(); }
  // Until release(), lines are kept: a move that is refused shows only why.  The bar is drawn.
  void release();
  // Ends the current phase and begins the next.
  void begin(const std::string& phase);
  // Of the current phase; draws at most ten times a second.
  void bytes(std::uint64_t total);
  // A round of memory is over: its number, and how much has been written meanwhile.
  void round(int number, std::uint64_t dirty_pages) {
    if (rounds_) {
      rounds_(number, dirty_pages);
    }
  }
  void watch_rounds(std::function<void(int number, std::uint64_t dirty_pages)> watcher) {
    rounds_ = std::move(watcher);
  }
  void end();
  // A sentence between the phases.
  void say(const std::string& text);
  [[nodiscard]] const std::vector<Phase>& phases() const { return phases_; }

 private:
  using Clock = std::chrono::steady_clock;
  void draw();
  void print(std::string line);
  void clear();

  int steps_;
  bool quiet_;
  bool terminal_;
  bool open_ = false;
  bool released_ = false;
  std::string kept_;
  std::vector<Phase> phases_;
  Clock::time_point begun_{};
  Clock::time_point drawn_{};
  std::function<void(int, std::uint64_t)> rounds_;
};

// "12.3 MiB"
std::string byte_text(std::uint64_t bytes);

}  // namespace ferry::migrate

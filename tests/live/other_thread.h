// A second thread of a live test's body.
#pragma once

#include <sched.h>
#include <unistd.h>

#include <atomic>
#include <thread>

namespace ferry::live {

// Runs in user mode, calling sched_yield(2) now and then, until it is told to end.
class OtherThread {
 public:
  OtherThread()
      : thread_([this] {
          tid_ = ::gettid();
          while (!end_) {
            ::sched_yield();
          }
        }) {
    while (tid_ == 0) {
      ::sched_yield();
    }
  }
  OtherThread(const OtherThread&) = delete;
  OtherThread& operator=(const OtherThread&) = delete;
  ~OtherThread() { end(); }

  [[nodiscard]] pid_t tid() const { return tid_; }
  void end() {
    end_ = true;
    if (thread_.joinable()) {
      thread_.join();
    }
  }

 private:
  std::atomic<pid_t> tid_{0};
  std::atomic<bool> end_{false};
  std::thread thread_;
};

}  // namespace ferry::live

// TCP_REPAIR, typed: tcp(7); Documentation of the option: Linux commit ee9952831cfd and those after it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "base/error.h"

namespace ferry::state::tcp {

enum class Queue : int { none = 0, receive = 1, send = 2 };

// The five numbers of TCP_REPAIR_WINDOW (Linux 4.9), in the kernel's order.
struct Window {
  std::uint32_t snd_wl1 = 0, snd_wnd = 0, max_window = 0, rcv_wnd = 0, rcv_wup = 0;
};

// A socket in repair mode.  What it is told then changes its state and sends nothing.
// A mode of the socket, not of its descriptors: it would outlive us.
class Repair {
 public:
  // Errors: denied (no CAP_NET_ADMIN over the socket's network namespace).
  static Result<Repair> begin(int fd, std::string_view subject);
  Repair(Repair&& other) noexcept;
  Repair& operator=(Repair&&) = delete;
  // Without a window probe, so that nobody sees that anything happened.
  ~Repair();
  // It stays in repair mode when this object goes.
  void leave_on() { fd_ = -1; }

 private:
  Repair(int fd, int reuse) : fd_(fd), reuse_(reuse) {}
  int fd_;
  int reuse_;  // SO_REUSEADDR, which the mode takes for itself
};

// Ends the mode; an established connection then sends a window probe, which makes the peer say what it has.
Result<void> end_repair(int fd, std::string_view subject);

Result<void> choose_queue(int fd, Queue queue, std::string_view subject);
Result<std::uint32_t> sequence(int fd, std::string_view subject);  // of the end of the chosen queue
Result<void> set_sequence(int fd, std::uint32_t value, std::string_view subject);
Result<Window> window(int fd, std::string_view subject);
Result<void> set_window(int fd, const Window& window, std::string_view subject);

}  // namespace ferry::state::tcp

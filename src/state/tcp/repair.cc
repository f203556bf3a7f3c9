#include "state/tcp/repair.h"

#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstddef>
#include <utility>

#include "base/log.h"
#include "state/socket/options.h"

namespace ferry::state::tcp {

using socket::get_int;
using socket::set_int;

// The struct is handed to the kernel as it is.
static_assert(sizeof(Window) == sizeof(tcp_repair_window));
static_assert(offsetof(Window, rcv_wup) == offsetof(tcp_repair_window, rcv_wup));

Result<Repair> Repair::begin(int fd, std::string_view subject) {
  FERRY_TRY(const int reuse, get_int(fd, SOL_SOCKET, SO_REUSEADDR, "SO_REUSEADDR"));
  FERRY_CHECK(set_int(fd, IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_ON, "TCP_REPAIR").during("{}", subject));
  return Repair(fd, reuse);
}

Repair::Repair(Repair&& other) noexcept : fd_(std::exchange(other.fd_, -1)), reuse_(other.reuse_) {}

Repair::~Repair() {
  if (fd_ < 0) {
    return;
  }
  auto off = set_int(fd_, IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_OFF_NO_WP, "TCP_REPAIR, off");
  if (!off.has_value() && off.error().os_errno == EINVAL) {
    // Before Linux 4.19: one segment without data, which a peer takes for a keepalive.
    off = set_int(fd_, IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_OFF, "TCP_REPAIR, off");
  }
  if (!off.has_value()) {
    log::error(off.error());
  }
  // The kernel leaves it off (do_tcp_setsockopt in net/ipv4/tcp.c).
  if (auto back = set_int(fd_, SOL_SOCKET, SO_REUSEADDR, reuse_, "SO_REUSEADDR"); !back.has_value()) {
    log::error(back.error());
  }
}

Result<void> end_repair(int fd, std::string_view subject) {
  return set_int(fd, IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_OFF, "TCP_REPAIR, off").during("{}", subject);
}

Result<void> choose_queue(int fd, Queue queue, std::string_view subject) {
  return set_int(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, static_cast<int>(queue), "TCP_REPAIR_QUEUE").during("{}", subject);
}

Result<std::uint32_t> sequence(int fd, std::string_view subject) {
  FERRY_TRY(const int value, get_int(fd, IPPROTO_TCP, TCP_QUEUE_SEQ, "TCP_QUEUE_SEQ").during("{}", subject));
  return static_cast<std::uint32_t>(value);
}

Result<void> set_sequence(int fd, std::uint32_t value, std::string_view subject) {
  return set_int(fd, IPPROTO_TCP, TCP_QUEUE_SEQ, static_cast<int>(value), "TCP_QUEUE_SEQ").during("{}", subject);
}

Result<Window> window(int fd, std::string_view subject) {
  Window out;
  socklen_t size = sizeof out;
  if (::getsockopt(fd, IPPROTO_TCP, TCP_REPAIR_WINDOW, &out, &size) != 0) {
    return sys_fail(fmt::format("getsockopt({}, TCP_REPAIR_WINDOW)", subject));
  }
  return out;
}

Result<void> set_window(int fd, const Window& window, std::string_view subject) {
  if (::setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_WINDOW, &window, sizeof window) != 0) {
    return sys_fail(fmt::format("setsockopt({}, TCP_REPAIR_WINDOW)", subject));
  }
  return {};
}

}  // namespace ferry::state::tcp

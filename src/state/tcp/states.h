// What the states of tcp(7) say of the two directions.
#pragma once

#include <linux/tcp.h>

#include <cstdint>
#include <string_view>

#include "base/error.h"

namespace ferry::state::tcp {

// linux/tcp.h lists the options of a connection but not the states; the numbers are those of TCP_INFO.
enum State : std::uint32_t {
  kEstablished = 1,
  kSynSent = 2,
  kSynReceived = 3,
  kFinWait1 = 4,
  kFinWait2 = 5,
  kTimeWait = 6,
  kClose = 7,
  kCloseWait = 8,
  kLastAck = 9,
  kListen = 10,
  kClosing = 11,
};

// We have closed: a FIN stands behind the last byte of the send queue, sent or not.
constexpr bool fin_sent(std::uint32_t s) { return s == kFinWait1 || s == kFinWait2 || s == kLastAck || s == kClosing; }
// The peer has closed: its FIN was the last that was received.
constexpr bool fin_received(std::uint32_t s) { return s == kCloseWait || s == kLastAck || s == kClosing; }

// TCP_INFO, as the kernel's header has it: that of the C library gives another, shorter structure the same name, so a
// file may include only one of them.
Result<tcp_info> info(int fd, std::string_view subject);

}  // namespace ferry::state::tcp

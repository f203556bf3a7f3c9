// Packets that a rule of nf_tables sends to a program and the kernel keeps until it decides:
// nfnetlink_queue (linux/netfilter/nfnetlink_queue.h), queue 0 of a network namespace.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"

namespace ferry::sys {

class PacketQueue {
 public:
  PacketQueue() = default;
  // For the network namespace of the calling thread.  When it is closed, however its process ends, the
  // kernel drops what waits.  `most`: packets that wait at a time; further ones are dropped.
  // Errors: os with EBUSY if another program has the queue.
  static Result<PacketQueue> open(std::uint32_t most);
  [[nodiscard]] explicit operator bool() const { return static_cast<bool>(fd_); }

  // What has come since, in order: whole IP packets.  Does not wait.
  Result<std::vector<std::string>> take();
  // All that take() has shown go on, or not.
  Result<void> accept_all();
  Result<void> drop_all();

 private:
  Result<void> decide(std::uint32_t verdict);
  Result<void> configure(const class Attributes& what, const char* name);
  UniqueFd fd_;
  std::uint32_t last_id_ = 0, sequence_ = 0;
};

}  // namespace ferry::sys

// What io_uring_setup(2), io_uring_register(2) and io_uring_enter(2) have gained since the headers that ferry is built
// with.  Source: include/uapi/linux/io_uring.h of Linux 6.18.
#pragma once

#include <linux/io_uring.h>

#include <cstdint>

namespace ferry::state::io_uring {

enum SetupFlag : std::uint32_t {
  kNoMmap = 1U << 14,            // IORING_SETUP_NO_MMAP, since Linux 6.5
  kRegisteredFdOnly = 1U << 15,  // IORING_SETUP_REGISTERED_FD_ONLY, 6.5
  kNoSqArray = 1U << 16,         // IORING_SETUP_NO_SQARRAY, 6.6
  kHybridIoPoll = 1U << 17,      // IORING_SETUP_HYBRID_IOPOLL, 6.13
  kCqeMixed = 1U << 18,          // IORING_SETUP_CQE_MIXED, 6.18
};
constexpr unsigned kRegisterNapi = 27;       // IORING_REGISTER_NAPI, 6.9
constexpr unsigned kRegisterClock = 29;      // IORING_REGISTER_CLOCK, 6.12
constexpr unsigned kRegisterMemRegion = 34;  // IORING_REGISTER_MEM_REGION, 6.13

}  // namespace ferry::state::io_uring

// Where body and harness meet: a structure in the body's own memory, which the harness reads and writes
// from outside.  No descriptor, mapping or signal of the harness is in what gets checkpointed.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace ferry::live {

struct Gate {
  std::atomic<std::uint32_t> arrived{0};   // checkpoints reached; written by the body
  std::atomic<std::uint32_t> passed{0};    // checkpoints done; written by the harness
  std::atomic<std::uint32_t> finished{0};  // the verdict is complete
  std::atomic<std::uint32_t> failures{0};
  std::atomic<std::uint32_t> skipped{0};
  std::atomic<std::uint32_t> pre_dump{0};  // what was arrived at wants a pre-dump only
  std::uint32_t text_size = 0;
  char text[60000] = {};  // the failures, or the reason of a skip
};

// The one of this process.
Gate& gate();

// Runs the body of one test and never returns.  `announce`: a descriptor to write the gate's address to.
[[noreturn]] void run_body(const char* suite_and_name, int announce);

}  // namespace ferry::live

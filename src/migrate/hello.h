// The handshake: whether the two sides understand each other, and how their clocks stand.
#pragma once

#include <chrono>
#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "migrate/link.h"
#include "state/timens/clocks.h"

namespace ferry::migrate {

// Counts up whenever a message changes its meaning or an answer is expected that older ones do not give.
inline constexpr std::uint32_t kProtocol = 6;

struct HostFacts {
  std::uint32_t protocol = kProtocol;
  std::string version;  // of ferry
  std::string name;
  std::string kernel;
  std::string architecture;
  bool late_pages = false;             // a tree can run before its memory has come
  std::set<std::string> cpu_features;  // as /proc/cpuinfo names them, those that programs use
};
Result<HostFacts> facts_of_this_host();

Result<void> send_hello(Link& link, const HostFacts& facts);
// Errors: unsupported, if the protocols differ.
Result<HostFacts> receive_hello(Link& link, std::chrono::milliseconds silence);

// Sentences: why a tree of `source` cannot run on `destination`.
std::vector<std::string> host_obstacles(const HostFacts& source, const HostFacts& destination);

// Those of a "flags" line of /proc/cpuinfo that change which instructions a program may use.
std::set<std::string> program_features(std::string_view flags);

std::uint64_t monotonic_ns();

// How far the other side's CLOCK_MONOTONIC is ahead, and how wrong that may be.
struct ClockRelation {
  std::int64_t ahead_ns = 0;
  std::uint64_t error_ns = 0;  // half of the fastest round trip
  // How far the clocks of its first time namespace are ahead of ours at least.
  state::timens::Clocks first_ahead;
  bool has_time_namespaces = false;
  bool same_boot = false;  // of one machine: these clocks are the same

  // With which distance to the other side's first time namespace a clock goes on there that is `offsets` ahead of our
  // first one, without ever going back.
  [[nodiscard]] state::timens::Clocks translate(const state::timens::Clocks& offsets) const {
    return same_boot ? offsets : offsets - first_ahead;
  }
};
// What the other side of relate_clocks answers.
Result<void> send_clocks(Link& link);
Result<ClockRelation> relate_clocks(Link& link);

}  // namespace ferry::migrate

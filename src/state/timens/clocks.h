// CLOCK_MONOTONIC and CLOCK_BOOTTIME of this host, and how far those of a time namespace are ahead of them.
// Source: time_namespaces(7).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/error.h"

namespace ferry::state::timens {

// Readings, or differences of readings.
struct Clocks {
  std::int64_t monotonic_ns = 0, boottime_ns = 0;
  bool operator==(const Clocks&) const = default;
  Clocks operator+(const Clocks& o) const { return {monotonic_ns + o.monotonic_ns, boottime_ns + o.boottime_ns}; }
  Clocks operator-(const Clocks& o) const { return {monotonic_ns - o.monotonic_ns, boottime_ns - o.boottime_ns}; }
};

// Text of /proc/PID/timens_offsets: how far the namespace that PID has chosen for its children is ahead of the first
// time namespace of the boot.
Result<Clocks> parse_offsets(std::string_view text);
std::string format_offsets(const Clocks& offsets);

// Of the namespace that we live in; none: the kernel has no time namespaces.
Result<std::optional<Clocks>> own_offsets();

// What does not change while a process of ours lives.
struct Host {
  std::string boot_id;
  bool has_namespaces = false;  // CONFIG_TIME_NS
  Clocks offsets;               // of the namespace that we live in ourselves
};
Result<Host> this_host();

// Of the namespace that we live in.
Result<Clocks> clocks_here();
// Of the first time namespace, although we may live in another one.
Result<Clocks> first_clocks(const Host& host);

}  // namespace ferry::state::timens

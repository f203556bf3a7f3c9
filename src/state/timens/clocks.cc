#include "state/timens/clocks.h"

#include <cerrno>
#include <charconv>
#include <ctime>

#include "sys/file.h"

namespace ferry::state::timens {
namespace {

constexpr std::int64_t kSecond = 1'000'000'000;

std::optional<std::int64_t> take_number(std::string_view& text) {
  text.remove_prefix(std::min(text.find_first_not_of(" \t"), text.size()));
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc()) {
    return std::nullopt;
  }
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  return value;
}

Result<std::int64_t> read_clock(clockid_t clock) {
  timespec t{};
  if (::clock_gettime(clock, &t) != 0) {
    return sys_fail(fmt::format("clock_gettime({})", clock));
  }
  return t.tv_sec * kSecond + t.tv_nsec;
}

// timens_offsets wants nanoseconds from 0 to 999,999,999 also for negative offsets.
std::string line(const char* clock, std::int64_t offset) {
  std::int64_t seconds = offset / kSecond;
  std::int64_t rest = offset % kSecond;
  if (rest < 0) {
    rest += kSecond;
    --seconds;
  }
  return fmt::format("{} {} {}\n", clock, seconds, rest);
}

}  // namespace

Result<Clocks> parse_offsets(std::string_view text) {
  Clocks out;
  bool monotonic = false, boottime = false;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    std::string_view row = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    const std::size_t word = std::min(row.find(' '), row.size());
    const std::string_view clock = row.substr(0, word);
    row.remove_prefix(word);
    const auto seconds = take_number(row);
    const auto rest = seconds.has_value() ? take_number(row) : std::nullopt;
    if (!rest.has_value()) {
      return fail(Kind::corrupt, "timens_offsets has a line that cannot be read: {}", clock);
    }
    const std::int64_t value = *seconds * kSecond + *rest;
    if (clock == "monotonic") {
      out.monotonic_ns = value;
      monotonic = true;
    } else if (clock == "boottime") {
      out.boottime_ns = value;
      boottime = true;
    }
  }
  if (!monotonic || !boottime) {
    return fail(Kind::corrupt, "timens_offsets lacks a clock");
  }
  return out;
}

std::string format_offsets(const Clocks& offsets) {
  return line("monotonic", offsets.monotonic_ns) + line("boottime", offsets.boottime_ns);
}

Result<std::optional<Clocks>> own_offsets() {
  const auto text = sys::read_file("/proc/self/timens_offsets");
  if (!text.has_value()) {
    if (text.error().os_errno == ENOENT) {
      return std::optional<Clocks>();
    }
    return tl::unexpected<Error>(text.error());
  }
  FERRY_TRY(const Clocks out, parse_offsets(*text));
  return std::optional(out);
}

Result<Host> this_host() {
  Host out;
  FERRY_TRY(out.boot_id, sys::read_file("/proc/sys/kernel/random/boot_id"));
  out.boot_id.erase(out.boot_id.find_last_not_of('\n') + 1);
  FERRY_TRY(const auto offsets, own_offsets());
  out.has_namespaces = offsets.has_value();
  out.offsets = offsets.value_or(Clocks());
  return out;
}

Result<Clocks> clocks_here() {
  Clocks out;
  FERRY_TRY(out.monotonic_ns, read_clock(CLOCK_MONOTONIC));
  FERRY_TRY(out.boottime_ns, read_clock(CLOCK_BOOTTIME));
  return out;
}

Result<Clocks> first_clocks(const Host& host) {
  FERRY_TRY(const Clocks here, clocks_here());
  return here - host.offsets;
}

}  // namespace ferry::state::timens

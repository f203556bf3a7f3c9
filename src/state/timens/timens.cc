#include "state/timens/timens.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <charconv>
#include <ctime>
#include <optional>

#include "state/nsids/nsids.h"
#include "sys/file.h"

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x00000080  // clone3(2), Linux 5.6
#endif

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

// The clocks of the first time namespace, although we may live in another one.
Result<Offsets> first_clocks() {
  FERRY_TRY(const std::string text, sys::read_file("/proc/self/timens_offsets"));
  FERRY_TRY(const Offsets own, parse_offsets(text));
  FERRY_TRY(const std::int64_t monotonic, read_clock(CLOCK_MONOTONIC));
  FERRY_TRY(const std::int64_t boottime, read_clock(CLOCK_BOOTTIME));
  return Offsets{monotonic - own.monotonic_ns, boottime - own.boottime_ns};
}

Result<std::string> boot_id() {
  FERRY_TRY(std::string id, sys::read_file("/proc/sys/kernel/random/boot_id"));
  id.erase(id.find_last_not_of('\n') + 1);
  return id;
}

void put(std::int64_t ns, pb::Timespec& out) {
  out.set_tv_sec(static_cast<std::uint64_t>(ns / kSecond));
  out.set_tv_nsec(static_cast<std::uint64_t>(ns % kSecond));
}

std::int64_t get(const pb::Timespec& t) {
  return static_cast<std::int64_t>(t.tv_sec()) * kSecond + static_cast<std::int64_t>(t.tv_nsec());
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

// The image of the tree: its number is 0 when it had no time namespace of its own.
const pb::TimensEntry* entry_of(const image::Set& set, const NamespaceIds& ids) {
  const std::uint64_t number = ids.is_new(NsKind::time) ? ids.id(NsKind::time) : 0;
  const auto list = set.list<pb::TimensEntry>({image::Type::timens, number});
  return list.empty() ? nullptr : list.front();
}

}  // namespace

Result<Offsets> parse_offsets(std::string_view text) {
  Offsets out;
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

Offsets offsets_for(const pb::TimensEntry& entry, const Offsets& now_ns) {
  return {get(entry.monotonic()) - now_ns.monotonic_ns, get(entry.boottime()) - now_ns.boottime_ns};
}

Result<void> collect(DumpContext& context) {
  FERRY_TRY(const NamespaceIds ids, NamespaceIds::of(context.set));
  FERRY_TRY(const std::string text, sys::read_file_at(context.root().proc.get(), "timens_offsets"));
  FERRY_TRY(const Offsets theirs, parse_offsets(text));
  FERRY_TRY(const Offsets now, first_clocks());
  pb::TimensEntry entry;
  put(now.monotonic_ns + theirs.monotonic_ns, *entry.mutable_monotonic());
  put(now.boottime_ns + theirs.boottime_ns, *entry.mutable_boottime());
  FERRY_TRY(const std::string boot, boot_id());
  entry.set_ferry_boot_id(boot);
  const std::uint64_t number = ids.is_new(NsKind::time) ? ids.id(NsKind::time) : 0;
  context.set.add({image::Type::timens, number}, std::move(entry));
  return {};
}

Result<void> restore(RestoreContext& context) {
  FERRY_TRY(const NamespaceIds ids, NamespaceIds::of(context.set));
  const pb::TimensEntry* entry = entry_of(context.set, ids);
  if (entry == nullptr) {
    return {};  // a set of an older CRIU: nothing is known about its clocks
  }
  FERRY_TRY(const std::string boot, boot_id());
  // A set of CRIU does not say which boot it belongs to; CRIU carries on clocks of time namespaces only.
  const bool other_boot = entry->has_ferry_boot_id() && entry->ferry_boot_id() != boot;
  if (!ids.is_new(NsKind::time) && !other_boot) {
    return {};
  }
  RestoreTask& root = context.root();
  tracee::Batch make;
  make.must("unshare(CLONE_NEWTIME)", SYS_unshare, {CLONE_NEWTIME});
  FERRY_CHECK(root.process.run(root.leader(), make));
  FERRY_TRY(const Offsets now, first_clocks());
  const Offsets offsets = offsets_for(*entry, now);
  FERRY_CHECK(sys::write_file(fmt::format("/proc/{}/timens_offsets", root.pid),
                              line("monotonic", offsets.monotonic_ns) + line("boottime", offsets.boottime_ns))
                  .during("continuing the clocks of the tree"));
  // unshare(2) chose it for children; the skeleton itself moves in by setns(2).
  tracee::Batch join;
  const tracee::Value ns = join.must(
      "open(time_for_children)", SYS_openat,
      {AT_FDCWD, join.string(fmt::format("/proc/{}/ns/time_for_children", root.pid)), O_RDONLY | O_CLOEXEC, 0});
  join.must("setns(CLONE_NEWTIME)", SYS_setns, {ns, CLONE_NEWTIME});
  join.must("close", SYS_close, {ns});
  FERRY_CHECK(root.process.run(root.leader(), join));
  return {};
}

}  // namespace ferry::state::timens

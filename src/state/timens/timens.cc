#include "state/timens/timens.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <ctime>
#include <set>

#include "base/log.h"
#include "image/proto/inventory.pb.h"
#include "state/dump_host.h"
#include "state/nsids/nsids.h"
#include "state/timens/offsets_of.h"
#include "sys/file.h"

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x00000080  // clone3(2), Linux 5.6
#endif

namespace ferry::state::timens {
namespace {

constexpr std::int64_t kSecond = 1'000'000'000;
// Two hosts whose clocks run apart by the most that their correction allows (500 ppm, adjtimex(2)) are so far apart
// after more than five hours.
constexpr std::int64_t kLongestWait = 10 * kSecond;

void put(std::int64_t ns, pb::Timespec& out) {
  out.set_tv_sec(static_cast<std::uint64_t>(ns / kSecond));
  out.set_tv_nsec(static_cast<std::uint64_t>(ns % kSecond));
}

std::int64_t get(const pb::Timespec& t) {
  return static_cast<std::int64_t>(t.tv_sec()) * kSecond + static_cast<std::int64_t>(t.tv_nsec());
}

void put(const Clocks& offsets, pb::FerryClockOffsets& out) {
  out.set_monotonic_ns(offsets.monotonic_ns);
  out.set_boottime_ns(offsets.boottime_ns);
}

Clocks get(const pb::FerryClockOffsets& offsets) { return {offsets.monotonic_ns(), offsets.boottime_ns()}; }

std::uint64_t number_of_root(const NamespaceIds& ids) { return ids.is_new(NsKind::time) ? ids.id(NsKind::time) : 0; }

Result<pb::TimensEntry*> entry_of_root(image::Set& set) {
  FERRY_TRY(const NamespaceIds ids, NamespaceIds::of(set));
  const image::Name name{image::Type::timens, number_of_root(ids)};
  if (!set.has(name) || set.entries(name).empty()) {
    return fail(Kind::corrupt, "the set does not have the clocks of the root task");
  }
  return static_cast<pb::TimensEntry*>(set.entries(name).front().message.get());
}

}  // namespace

const pb::TimensEntry* entry_of(const image::Set& set, std::uint32_t ns, std::uint32_t dumper) {
  const auto list = set.list<pb::TimensEntry>({image::Type::timens, ns == dumper ? 0 : ns});
  return list.empty() ? nullptr : list.front();
}

Clocks readings_of(const pb::TimensEntry& entry) { return {get(entry.monotonic()), get(entry.boottime())}; }

std::optional<Clocks> wanted(const pb::TimensEntry& entry, bool is_new, const Host& host, const Clocks& now) {
  std::optional<Clocks> out;
  if (entry.has_ferry_go_on()) {
    out = get(entry.ferry_go_on());
  } else if (is_new || (entry.has_ferry_boot_id() && entry.ferry_boot_id() != host.boot_id)) {
    return readings_of(entry) - now;
  } else if (entry.has_ferry_offsets()) {
    out = get(entry.ferry_offsets());  // our own namespace may be another one than the dumper's
  }
  // A set of CRIU does not say which boot it belongs to; CRIU carries on clocks of time namespaces only.
  return is_new || (out && *out != host.offsets) ? out : std::nullopt;
}

Result<Clocks> root_offsets(const image::Set& set) {
  FERRY_TRY(const NamespaceIds ids, NamespaceIds::of(set));
  const auto list = set.list<pb::TimensEntry>({image::Type::timens, number_of_root(ids)});
  if (list.empty() || !list.front()->has_ferry_offsets()) {
    return fail(Kind::corrupt, "the set does not say how far the clocks of the root task are ahead");
  }
  return get(list.front()->ferry_offsets());
}

Result<void> go_on(image::Set& set, const Clocks& offsets) {
  FERRY_TRY(pb::TimensEntry* const entry, entry_of_root(set));
  put(offsets, *entry->mutable_ferry_go_on());
  return {};
}

Result<void> collect(DumpContext& context) {
  FERRY_TRY(const auto* inventory, context.set.one<pb::InventoryEntry>({image::Type::inventory, 0}));
  const std::uint32_t own = inventory->root_ids().time_ns_id();
  const Host& host = context.host.clocks();
  FERRY_TRY(const Clocks now, first_clocks(host));
  std::set<std::uint32_t> seen;
  for (const auto& task : context.tasks) {
    if (task->zombie || task->ids == nullptr) {
      continue;
    }
    for (const std::uint32_t ns : {task->ids->time_ns_id(), task->ids->ferry_time_for_children_ns_id()}) {
      if (ns == 0 || !seen.insert(ns).second) {
        continue;
      }
      Clocks offsets = host.offsets;
      if (ns != own) {
        FERRY_TRY(offsets, offsets_of(context, ns));
      }
      pb::TimensEntry entry;
      put((now + offsets).monotonic_ns, *entry.mutable_monotonic());
      put((now + offsets).boottime_ns, *entry.mutable_boottime());
      entry.set_ferry_boot_id(host.boot_id);
      put(offsets, *entry.mutable_ferry_offsets());
      context.set.add({image::Type::timens, ns == own ? 0 : ns}, std::move(entry));
    }
  }
  return {};
}

Result<void> restore(RestoreContext& context) {
  FERRY_TRY(const NamespaceIds ids, NamespaceIds::of(context.set));
  const bool is_new = ids.is_new(NsKind::time);
  const pb::TimensEntry* entry =
      entry_of(context.set, ids.id(NsKind::time), ids.dumper[static_cast<std::size_t>(NsKind::time)]);
  if (entry == nullptr) {
    return {};  // a set of an older CRIU: nothing is known about its clocks
  }
  FERRY_TRY(const Host host, this_host());
  FERRY_TRY(const Clocks first_look, first_clocks(host));
  if (!wanted(*entry, is_new, host, first_look)) {
    return {};
  }
  if (!host.has_namespaces) {
    if (is_new) {
      return fail(Kind::unsupported, "the tree had a time namespace, and this kernel has none (CONFIG_TIME_NS)");
    }
    log::warning(
        "CLOCK_MONOTONIC and CLOCK_BOOTTIME of the tree jump to this host's: its kernel has no time namespaces (CONFIG_TIME_NS)");
    return {};
  }
  RestoreTask& root = context.root();
  tracee::Batch make;
  make.must("unshare(CLONE_NEWTIME)", SYS_unshare, {CLONE_NEWTIME});
  FERRY_CHECK(root.process.run(root.leader(), make));
  FERRY_TRY(const Clocks now, first_clocks(host));
  const Clocks offsets = *wanted(*entry, is_new, host, now);
  FERRY_CHECK(sys::write_file(fmt::format("/proc/{}/timens_offsets", root.pid), format_offsets(offsets))
                  .during("continuing the clocks of the tree"));
  // unshare(2) chose it for children; the skeleton itself moves in by setns(2).
  tracee::Batch join;
  const tracee::Value ns = join.must(
      "open(time_for_children)", SYS_openat,
      {AT_FDCWD, join.string(fmt::format("/proc/{}/ns/time_for_children", root.pid)), O_RDONLY | O_CLOEXEC, 0});
  join.must("setns(CLONE_NEWTIME)", SYS_setns, {ns, CLONE_NEWTIME});
  join.must("close", SYS_close, {ns});
  FERRY_CHECK(root.process.run(root.leader(), join));
  log::debug("the tree's clocks are ahead of this boot's by {} ns (monotonic) and {} ns (boottime)",
             offsets.monotonic_ns, offsets.boottime_ns);
  return {};
}

Result<Clocks> not_before(RestoreContext& context) {
  FERRY_TRY(const NamespaceIds ids, NamespaceIds::of(context.set));
  const pb::TimensEntry* entry =
      entry_of(context.set, ids.id(NsKind::time), ids.dumper[static_cast<std::size_t>(NsKind::time)]);
  FERRY_TRY(const auto ours, own_offsets());
  if (entry == nullptr || !ours) {
    return Clocks();
  }
  FERRY_TRY(const std::string text, sys::read_file(fmt::format("/proc/{}/timens_offsets", context.root().pid)));
  FERRY_TRY(const Clocks theirs, parse_offsets(text));
  return readings_of(*entry) - theirs + *ours;
}

Result<void> wait_until(const Clocks& here) {
  FERRY_TRY(const Clocks now, clocks_here());
  const Clocks left = here - now;
  if (left.monotonic_ns <= 0 && left.boottime_ns <= 0) {
    return {};
  }
  if (std::max(left.monotonic_ns, left.boottime_ns) > kLongestWait) {
    return fail(Kind::unsupported, "the clocks of the tree would go back by {} s",
                std::max(left.monotonic_ns, left.boottime_ns) / kSecond);
  }
  log::info("waiting {} us, for the clocks of the tree not to go back",
            std::max(left.monotonic_ns, left.boottime_ns) / 1000);
  for (const auto& [clock, until] :
       {std::pair(CLOCK_MONOTONIC, here.monotonic_ns), std::pair(CLOCK_BOOTTIME, here.boottime_ns)}) {
    const timespec end{until / kSecond, until % kSecond};
    while (until > 0 && ::clock_nanosleep(clock, TIMER_ABSTIME, &end, nullptr) == EINTR) {
    }
  }
  return {};
}

}  // namespace ferry::state::timens

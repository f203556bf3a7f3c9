#include "migrate/rounds.h"

#include <fcntl.h>

#include <algorithm>

#include "base/log.h"
#include "engine/list_tree.h"
#include "engine/tracker_keeper.h"
#include "image/page_store.h"
#include "image/proto/mm.pb.h"
#include "migrate/message.pb.h"
#include "migrate/pages.h"
#include "state/memory/pages.h"
#include "sys/file.h"
#include "sys/memory.h"

namespace ferry::migrate {
namespace {

using Clock = std::chrono::steady_clock;
using image::kPageSize;

constexpr std::size_t kPiece = 4U << 20;
constexpr std::chrono::minutes kAnswerLimit(10);
// A round that leaves this much of what the one before left does not get anywhere.
constexpr double kStandstill = 0.9;
constexpr int kPatience = 4;  // rounds in a row

double ms_since(Clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
}

Result<NsPid> innermost_number(HostPid pid) {
  FERRY_TRY(const auto text, sys::read_file(fmt::format("/proc/{}/status", pid)));
  FERRY_TRY(const auto status, sys::parse_status(text));
  if (status.ns_tgid.empty()) {
    return fail(Kind::gone, "pid {} has ended", pid);
  }
  return NsPid(status.ns_tgid.back());
}

bool is_a_zombie(HostPid pid) {
  const auto text = sys::read_file(fmt::format("/proc/{}/stat", pid));
  const auto stat = text.has_value() ? sys::parse_stat(*text) : Result<sys::Stat>(fail(Kind::gone, "pid {}", pid));
  return !stat.has_value() || stat->state == 'Z' || stat->state == 'X';
}

}  // namespace

Result<Rounds> Rounds::watch(Link& link, HostPid root, std::set<NsPid> skeletons) {
  Rounds out(link, std::move(skeletons));
  // A process has one tracker only.  Should the move fail, the next of a row of pre-dumps has all memory again.
  FERRY_TRY(const auto keepers, engine::TrackerKeeper::find(engine::list_tree(root)));
  for (const engine::TrackerKeeper& keeper : keepers) {
    FERRY_CHECK(keeper.void_marks());
    FERRY_CHECK(keeper.stop());
  }
  for (const HostPid pid : engine::list_tree(root)) {
    const auto number = innermost_number(pid);
    if (!number.has_value() || !out.skeletons_.contains(*number)) {
      continue;
    }
    auto tracker = state::memory::Tracker::install(pid);
    if (tracker.has_value()) {
      out.watched_.emplace(pid, Watched{*number, std::move(*tracker)});
    } else if (pid == root || (tracker.error().kind != Kind::gone && !is_a_zombie(pid))) {
      FERRY_CHECK(std::move(tracker).during("watching pid {}", pid));
    }
  }
  return out;
}

// A page that cannot be read has just been unmapped; if it comes back it counts as written.
Result<void> Rounds::send(HostPid pid, NsPid ns_pid, int memory, const std::vector<sys::PageRange>& ranges, Round& round) {
  buffer_.resize(kPiece);
  PageSender sender(*link_, {image::Type::pagemap, static_cast<std::uint64_t>(ns_pid.value)});
  for (const sys::PageRange& range : ranges) {
    for (std::uint64_t at = range.start; at < range.end;) {
      std::uint64_t size = std::min<std::uint64_t>(kPiece, range.end - at);
      auto read = sys::read_memory(pid, at, std::span(buffer_).first(size), memory);
      for (; !read.has_value() && size > kPageSize; read = sys::read_memory(pid, at, std::span(buffer_).first(size), memory)) {
        size = std::max<std::uint64_t>(kPageSize, size / 8 / kPageSize * kPageSize);
      }
      if (read.has_value()) {
        FERRY_TRY(const std::uint64_t sent, sender.send(at, std::span(buffer_).first(size)));
        round.bytes += sent;
      }
      at += size;
    }
  }
  return {};
}

Result<Round> Rounds::round(Progress& progress) {
  const auto begin = Clock::now();
  const std::uint64_t sent_before = link_->sent();
  Round out;
  for (auto watched = watched_.begin(); watched != watched_.end();) {
    auto& [pid, it] = *watched;
    auto scan = it.tracker.scan(state::memory::Then::protect);
    const auto memory = sys::open(fmt::format("/proc/{}/mem", pid), O_RDONLY);
    if (!scan.has_value() || !memory.has_value() || scan->renewed) {
      // It has ended, or runs another program: what is there now is sent in the freeze.
      log::debug("pid {} is not watched any more", pid);
      watched = watched_.erase(watched);
      continue;
    }
    out.dirty += state::memory::count_pages(scan->written) * kPageSize;
    FERRY_CHECK(send(pid, it.ns_pid, memory->get(), scan->written, out));
    progress.bytes(link_->sent() - sent_before);
    ++watched;
  }
  // The answer comes when everything has arrived: only then is it known how fast the way is.
  wire::Message message;
  message.mutable_round()->set_dirty_pages(out.dirty / kPageSize);
  FERRY_CHECK(link_->send(message));
  wire::Message answer;
  FERRY_CHECK(link_->receive(answer, kAnswerLimit));
  if (!answer.has_done()) {
    return fail(Kind::corrupt, "{} does not say that the pages have arrived", link_->peer());
  }
  out.ms = ms_since(begin);
  return out;
}

Result<bool> Rounds::run(const RoundLimits& limits, Progress& progress) {
  const auto begin = Clock::now();
  const double limit = static_cast<double>(limits.downtime.count());
  int standing = 0;
  for (;;) {
    FERRY_TRY(const Round last, round(progress));
    rounds_.push_back(last);
    progress.round(static_cast<int>(rounds_.size()), last.dirty / kPageSize);
    log::debug("round {}: {} KiB written, {} KiB sent, {:.1f} ms", rounds_.size(), last.dirty >> 10, last.bytes >> 10, last.ms);
    // What is written during a round has to be sent in the next one: if this one was as short as the pause may
    // be, so will the last one be.
    if (last.ms <= limit && rounds_.size() > 1) {
      return true;
    }
    const bool still = rounds_.size() > 1 && static_cast<double>(last.dirty) > kStandstill * static_cast<double>(rounds_[rounds_.size() - 2].dirty);
    standing = still ? standing + 1 : 0;
    if (standing == kPatience || static_cast<int>(rounds_.size()) >= limits.rounds || Clock::now() - begin > limits.time) {
      return false;
    }
  }
}

// Of a process that is not watched, or not any more (execve(2), a number that is used again), everything counts
// as written.
Result<state::memory::Scan> Rounds::last_scan(state::DumpTask& task) {
  const auto found = watched_.find(task.pid);
  if (found != watched_.end() && found->second.tracker.start_time() == task.stat.start_time) {
    FERRY_TRY(auto scan, found->second.tracker.scan(state::memory::Then::leave, task.mappings));
    return scan;
  }
  FERRY_TRY(const UniqueFd pagemap, sys::open_at(task.proc.get(), "pagemap", O_RDONLY));
  state::memory::Scan scan;
  for (const sys::Mapping& mapping : task.mappings) {
    FERRY_CHECK(state::memory::add_kept(state::memory::kept(mapping), pagemap.get(), mapping.start, mapping.end, scan.written,
                                        &scan.guards));
  }
  return scan;
}

Result<bool> Rounds::last(state::DumpTask& task, image::Set& set) {
  if (!skeletons_.contains(task.ns_pid)) {
    return false;
  }
  FERRY_TRY(const auto scan, last_scan(task));
  state::memory::add_guards(scan.guards, *task.mm);
  Round round;
  round.dirty = state::memory::count_pages(scan.written) * kPageSize;
  const auto begin = Clock::now();
  FERRY_CHECK(send(task.pid, task.ns_pid, task.process.memory(), scan.written, round));
  round.ms = ms_since(begin);
  rounds_.push_back(round);
  std::vector<sys::PageRange> all = scan.written;
  all.insert(all.end(), scan.unchanged.begin(), scan.unchanged.end());
  state::memory::tidy(all);
  const image::Name name{image::Type::pagemap, static_cast<std::uint64_t>(task.ns_pid.value)};
  pb::PagemapHead head;
  head.set_pages_id(0);
  set.add(name, std::move(head));
  for (const sys::PageRange& range : all) {
    pb::PagemapEntry entry;
    entry.set_vaddr(range.start);
    entry.set_compat_nr_pages(0);
    entry.set_flags(image::kPresent);
    entry.set_nr_pages(range.pages());
    set.add(name, std::move(entry));
  }
  return true;
}

}  // namespace ferry::migrate

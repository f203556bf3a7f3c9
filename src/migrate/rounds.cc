#include "migrate/rounds.h"

#include <fcntl.h>

#include <algorithm>
#include <list>
#include <map>
#include <utility>

#include "base/log.h"
#include "engine/list_tree.h"
#include "engine/tracker_keeper.h"
#include "image/page_store.h"
#include "image/proto/mm.pb.h"
#include "migrate/message.pb.h"
#include "state/memory/lazy.h"
#include "state/memory/pages.h"
#include "state/memory/relatives.h"
#include "sys/file.h"
#include "sys/memory.h"
#include "sys/proc.h"

namespace ferry::migrate {
namespace {

using Clock = std::chrono::steady_clock;
using image::kPageSize;

constexpr std::chrono::minutes kAnswerLimit(10);
// While catching up new connections wait: for a destination that answers, as long as a client hardly notices, and for
// one that does not, no longer than until the first of them is given up.
constexpr std::chrono::seconds kCatchUpAnswerLimit(10);
constexpr double kCatchUpLimitMs = 50;
constexpr int kMostOfCatchingUp = 3;          // rounds
constexpr std::uint64_t kLittle = 512 << 10;  // bytes: sending them takes less time than one more round would

image::Name pagemap_of(NsPid pid) { return {image::Type::pagemap, static_cast<std::uint64_t>(pid.value)}; }

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

Result<sys::Stat> stat_of(HostPid pid) {
  FERRY_TRY(const auto text, sys::read_file(fmt::format("/proc/{}/stat", pid)));
  return sys::parse_stat(text);
}

bool is_a_zombie(HostPid pid) {
  const auto stat = stat_of(pid);
  return !stat.has_value() || stat->state == 'Z' || stat->state == 'X';
}

}  // namespace

Result<Rounds> Rounds::watch(Link& control, PageStreams& streams, HostPid root, std::set<NsPid> skeletons) {
  Rounds out(control, streams, std::move(skeletons));
  // A process has one tracker only.  Should the move fail, the next of a row of pre-dumps has all memory again.
  FERRY_TRY(const auto keepers, engine::TrackerKeeper::find(engine::list_tree(root)));
  for (const engine::TrackerKeeper& keeper : keepers) {
    FERRY_CHECK(keeper.void_marks());
    FERRY_CHECK(keeper.stop());
  }
  tracee::WaysBack ways;
  for (const HostPid pid : engine::list_tree(root)) {
    const auto number = innermost_number(pid);
    if (!number.has_value() || !out.skeletons_.contains(*number)) {
      continue;
    }
    ways.learn(pid);
    auto tracker = state::memory::Tracker::install(pid, ways);
    if (tracker.has_value()) {
      out.watched_.emplace(pid, Watched{*number, std::move(*tracker)});
    } else if (pid == root || (tracker.error().kind != Kind::gone && !is_a_zombie(pid))) {
      FERRY_CHECK(std::move(tracker).during("watching pid {}", pid));
    }
  }
  out.spare_relatives();
  return out;
}

// A move must not take the container over its limit of memory: processes that were forked from one another keep the
// pages that they share while these are read.
void Rounds::spare_relatives() {
  std::list<sys::Stat> stats;
  std::vector<const sys::Stat*> processes;
  std::vector<Watched*> theirs;
  for (auto& [pid, watched] : watched_) {
    if (auto stat = stat_of(pid); stat.has_value()) {  // or it has ended
      processes.push_back(&stats.emplace_back(std::move(*stat)));
      theirs.push_back(&watched);
    }
  }
  const auto readings = state::memory::readings_of(processes);
  for (std::size_t i = 0; i < theirs.size(); ++i) {
    theirs[i]->reading = readings[i];
  }
}

Result<void> Rounds::await_done(std::string_view what, std::chrono::milliseconds patience) {
  wire::Message answer;
  FERRY_CHECK(control_->receive(answer, patience));
  if (answer.has_refused()) {
    return fail(Kind::os, "{}: {}", control_->peer(), answer.refused().reason());
  }
  if (!answer.has_done()) {
    return fail(Kind::corrupt, "{} does not say that {}", control_->peer(), what);
  }
  return {};
}

Result<Round> Rounds::round(Progress* progress) {
  const auto begin = Clock::now();
  const std::uint64_t content_before = streams_->content_bytes();
  const std::uint64_t wire_before = streams_->wire_bytes();
  Round out;
  // First: to look through them takes its time, in which private memory is written again.  For the same reason not
  // while only catching up.
  if (progress != nullptr) {
    FERRY_TRY(const auto shared, segments_.send(*streams_));
    out.scan_ms += shared.looking_ms;
    out.dirty += shared.pages * kPageSize;
  }
  for (auto watched = watched_.begin(); watched != watched_.end();) {
    auto& [pid, it] = *watched;
    const auto scan_begin = Clock::now();
    auto scan = it.tracker.scan(state::memory::Then::protect);
    out.scan_ms += ms_since(scan_begin);
    auto memory = sys::open(fmt::format("/proc/{}/mem", pid), O_RDONLY);
    if (!scan.has_value() || !memory.has_value() || scan->renewed) {
      // It has ended, or runs another program: what is there now is sent in the freeze.
      log::debug("pid {} is not watched any more", pid);
      watched = watched_.erase(watched);
      continue;
    }
    out.dirty += state::memory::count_pages(scan->written) * kPageSize;
    streams_->add(pagemap_of(it.ns_pid), pid, std::make_shared<const UniqueFd>(std::move(*memory)), scan->written,
                  it.reading);
    ++watched;
  }
  FERRY_CHECK(streams_->drain([&] {
    if (progress != nullptr) {
      progress->bytes(streams_->wire_bytes() - wire_before);
    }
  }));
  FERRY_TRY(const std::uint64_t mark, streams_->mark(false));
  // The answer comes when everything has arrived: only then is it known how fast the way is.
  wire::Message message;
  message.mutable_round()->set_dirty_pages(out.dirty / kPageSize);
  message.mutable_round()->set_mark(mark);
  FERRY_CHECK(control_->send(message));
  FERRY_CHECK(await_done("the pages have arrived",
                         progress != nullptr ? std::chrono::milliseconds(kAnswerLimit) : kCatchUpAnswerLimit));
  out.bytes = streams_->content_bytes() - content_before;
  out.wire = streams_->wire_bytes() - wire_before;
  out.ms = ms_since(begin);
  return out;
}

Result<void> Rounds::send_segments(Progress& progress) {
  if (segments_.empty()) {
    return {};
  }
  std::uint64_t before = 0;
  for (int i = 0; i < kMostOfCatchingUp; ++i) {
    FERRY_TRY(const Round last, round(&progress));
    rounds_.push_back(last);
    progress.round(static_cast<int>(rounds_.size()), last.dirty / kPageSize);
    if (last.dirty <= kLittle || (i > 0 && last.dirty > before / 2)) {
      break;
    }
    before = last.dirty;
  }
  return {};
}

// A process that has ended, or runs another program, is none of those that are watched; the next round finds out.
std::map<NsPid, std::vector<sys::PageRange>> Rounds::written_since() {
  std::map<NsPid, std::vector<sys::PageRange>> out;
  for (auto& [pid, it] : watched_) {
    if (auto scan = it.tracker.scan(state::memory::Then::leave); scan.has_value() && !scan->renewed) {
      out.insert_or_assign(it.ns_pid, std::move(scan->written));
    }
  }
  return out;
}

Result<void> Rounds::postpone(PostCopySupply& supply) {
  supply_ = &supply;
  for (const auto& [pid, ranges] : written_since()) {
    wire::Message message;
    message.mutable_stale()->set_pid(static_cast<std::uint32_t>(pid.value));
    for (const sys::PageRange& range : ranges) {
      message.mutable_stale()->add_borders(range.start);
      message.mutable_stale()->add_borders(range.end);
    }
    FERRY_CHECK(control_->send(message));
    // To drop a gigabyte takes longer than a pause is allowed to.
    FERRY_CHECK(await_done("stale pages are gone", kAnswerLimit));
  }
  return {};
}

Result<Controller::Step> Rounds::run(const Controller::Limits& limits, Progress& progress, Throttle* throttle,
                                     StorageOut* storage) {
  const auto begin = Clock::now();
  Controller controller(limits);
  double share = 1;
  for (;;) {
    double files_ms = 0;
    if (storage != nullptr) {
      FERRY_TRY(files_ms, storage->send_changes(*control_));
    }
    FERRY_TRY(Round last, round(&progress));
    last.files_ms = files_ms;
    last.ms += files_ms;
    // Files take their time in the pause, too, and memory is written meanwhile: as finding what was written.
    const auto step = controller.after(
        {.ms = last.ms, .scan_ms = last.scan_ms + files_ms, .dirty = last.dirty, .wire = last.wire}, ms_since(begin));
    last.share = share;
    last.predicted_ms = rounds_.empty() ? 0 : controller.predicted_ms();
    rounds_.push_back(last);
    progress.round(static_cast<int>(rounds_.size()), last.dirty / kPageSize);
    log::debug("round {}: {} KiB written, {} KiB sent, {:.1f} ms, a pause of {:.1f} ms", rounds_.size(),
               last.dirty >> 10, last.bytes >> 10, last.ms, last.predicted_ms);
    if (step == Controller::Step::hand_over && storage != nullptr && storage->worth_another(limits.pause_ms) &&
        static_cast<int>(rounds_.size()) < limits.rounds) {
      continue;  // memory would fit, files do not yet
    }
    switch (step) {
      case Controller::Step::another: {
        if (!limits.may_postpone) {
          break;
        }
        std::uint64_t dirty = 0;
        for (const auto& [pid, ranges] : written_since()) {
          dirty += state::memory::count_pages(ranges) * kPageSize;
        }
        if (!controller.worth_a_round(dirty)) {
          log::debug("{} KiB were written during round {}", dirty >> 10, rounds_.size());
          return Controller::Step::postpone;
        }
        break;
      }
      case Controller::Step::slower:
        FERRY_CHECK(throttle->slow_to(controller.share()));
        share = controller.share();
        progress.say(fmt::format(
            "it writes faster than its memory can be sent: from here on it has {:.0f} % of its processor time",
            share * 100));
        break;
      case Controller::Step::hand_over:
      case Controller::Step::postpone:
      case Controller::Step::give_up:
        return step;
    }
  }
}

Result<void> Rounds::catch_up() {
  if (watched_.empty() || supply_ != nullptr) {
    return {};
  }
  const auto begin = Clock::now();
  for (int i = 0; i < kMostOfCatchingUp && ms_since(begin) < kCatchUpLimitMs; ++i) {
    FERRY_TRY(const Round last, round(nullptr));
    rounds_.push_back(last);
    log::debug("catching up: {} KiB written, {} KiB sent, {:.1f} ms", last.dirty >> 10, last.bytes >> 10, last.ms);
    if (last.dirty <= kLittle) {
      break;
    }
  }
  return {};
}

// Of a process that is not watched, or not any more (execve(2), a number that is used again), everything counts
// as written.
Result<state::memory::Scan> Rounds::last_scan(const state::DumpTask& task) {
  const auto found = watched_.find(task.pid);
  if (found != watched_.end() && found->second.tracker.start_time() == task.stat.start_time) {
    FERRY_TRY(auto scan, found->second.tracker.scan(state::memory::Then::leave, task.mappings));
    return scan;
  }
  FERRY_TRY(const UniqueFd pagemap, sys::open_at(task.proc.get(), "pagemap", O_RDONLY));
  state::memory::Scan scan;
  for (const sys::Mapping& mapping : task.mappings) {
    FERRY_CHECK(state::memory::add_kept(state::memory::kept(mapping), state::memory::backing(mapping), pagemap.get(),
                                        mapping.start, mapping.end, scan.written, &scan.guards));
  }
  return scan;
}

Result<void> Rounds::begin_last(std::span<const std::unique_ptr<state::DumpTask>> tasks) {
  last_begun_ = Clock::now();
  content_before_ = streams_->content_bytes();
  wire_before_ = streams_->wire_bytes();
  rounds_.emplace_back();
  const auto readings = state::memory::readings_of(tasks);
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    const auto& task = tasks[i];
    if (task->zombie || !skeletons_.contains(task->ns_pid)) {
      continue;
    }
    LastLook look;
    look.reading = readings[i];
    FERRY_TRY(look.scan, last_scan(*task).during("finding what pid {} has written", task->pid));
    FERRY_TRY(UniqueFd opened, sys::duplicate(task->process.memory()));
    look.memory = std::make_shared<const UniqueFd>(std::move(opened));
    rounds_.back().dirty += state::memory::count_pages(look.scan.written) * kPageSize;
    if (supply_ == nullptr) {
      streams_->add(pagemap_of(task->ns_pid), task->pid, look.memory, look.scan.written, look.reading);
    }
    looks_.insert_or_assign(task->pid, std::move(look));
  }
  return {};
}

Result<bool> Rounds::last(state::DumpTask& task, image::Set& set) {
  const auto found = looks_.find(task.pid);
  if (found == looks_.end()) {
    return false;
  }
  const auto& [scan, memory, reading] = found->second;
  state::memory::add_guards(scan.guards, *task.mm);
  std::vector<sys::PageRange> now = scan.written;
  std::vector<sys::PageRange> later;
  if (supply_ != nullptr) {
    const auto can_wait = state::memory::lazy_ranges(*task.mm);
    later = state::memory::common(scan.written, can_wait);
    now = state::memory::without(scan.written, can_wait);
    supply_->offer(task.ns_pid, task.pid, memory);
    postponed_bytes_ += state::memory::count_pages(later) * kPageSize;
    streams_->add(pagemap_of(task.ns_pid), task.pid, memory, now, reading);
  }
  std::vector<sys::PageRange> there = now;
  there.insert(there.end(), scan.unchanged.begin(), scan.unchanged.end());
  state::memory::tidy(there);
  std::map<std::uint64_t, std::pair<sys::PageRange, std::uint32_t>> all;  // by address
  for (const sys::PageRange& range : there) {
    all.emplace(range.start, std::pair(range, std::uint32_t{image::kPresent}));
  }
  for (const sys::PageRange& range : later) {
    all.emplace(range.start, std::pair(range, std::uint32_t{image::kLazy}));
  }
  const image::Name name = pagemap_of(task.ns_pid);
  pb::PagemapHead head;
  head.set_pages_id(0);
  set.add(name, std::move(head));
  for (const auto& [address, part] : all) {
    pb::PagemapEntry entry;
    entry.set_vaddr(address);
    entry.set_compat_nr_pages(0);
    entry.set_flags(part.second);
    entry.set_nr_pages(part.first.pages());
    set.add(name, std::move(entry));
  }
  return true;
}

void Rounds::ended() {
  if (last_begun_) {
    rounds_.back().ms = ms_since(*last_begun_);
    rounds_.back().bytes = streams_->content_bytes() - content_before_;
    rounds_.back().wire = streams_->wire_bytes() - wire_before_;
  }
}

}  // namespace ferry::migrate

#include <stdlib.h>

#include <chrono>

#include "engine/checkpoint.h"
#include "migrate/hand_over.h"
#include "migrate/message.pb.h"
#include "migrate/sender.h"
#include "state/timens/timens.h"

namespace ferry::migrate {
namespace {

using wire::Message;

constexpr std::uint64_t kGhostLimit = 64U << 20;  // bytes of a deleted file, which travel inside the freeze

// What the pause takes besides memory, seen from how long the look has taken, which is the source's part of it:
// the destination makes what the source has looked at.
constexpr double kOfTheLook = 1.5;

class Silent : public engine::Listener {
 public:
  Result<engine::Answer> on(const engine::Notice&) override { return engine::Answer{}; }
};

}  // namespace

engine::DumpOptions Sender::dump_options() const {
  const container::RuntimeFacts& facts = departure_.facts();
  engine::DumpOptions out;
  out.pid = departure_.container().pid;
  out.root = facts.root;
  out.freeze_cgroup = facts.freeze_cgroup;
  // The same words that runc uses, since it is runc that asks for the restore.
  for (const std::string& path : facts.external_mounts) {
    out.external_mounts.push_back({path, path});
  }
  for (const std::string& path : facts.masked_files) {
    out.external_mounts.push_back({path, "/dev/null"});
  }
  out.empty_net_namespace = true;
  out.orphan_pts_master = true;
  out.tcp_close = options_.tcp_close;
  out.tcp_established = keeps_addresses_ && !options_.tcp_close;
  // What only has to be asked for because a checkpoint may lie around: here it is restored at once, or never.
  out.file_locks = true;
  out.ghost_limit = kGhostLimit;
  out.cgroup_mode = engine::CgroupMode::soft;
  out.cgroup_by_runtime = true;
  return out;
}

Result<Door> Sender::door_for(engine::DumpOptions& options) const {
  FERRY_TRY(Door door, Door::of(departure_.container().pid));
  if (door.exists()) {
    options.network_lock = engine::NetworkLock::skip;
  }
  return door;
}

Result<void> Sender::start() {
  book_.step(Step::start);
  progress_.begin("start the twin");
  engine::DumpOptions options = dump_options();
  options.leave_running = true;
  options.skip_memory = true;
  Silent listener;
  FERRY_TRY(Door door, door_for(options));
  LookKeeper look(door);
  auto looked = engine::checkpoint(options, listener, look);
  door.reopen();
  FERRY_CHECK(std::move(looked).during("looking at container {}", name()));
  skeletons_ = look.processes();
  segments_ = look.segments();
  look_ms_ = look.stopped_ms();
  Message message;
  for (const std::string& descriptor : departure_.facts().descriptors) {
    message.mutable_start()->add_descriptors(descriptor);
  }
  message.mutable_start()->set_tcp_close(options_.tcp_close);
  FERRY_TRY(const std::string set, with_clocks_of_destination(look.encoded()));
  FERRY_CHECK(link_.send(message));
  FERRY_CHECK(streams_.bulk().send_bulk(std::as_bytes(std::span(set))));
  FERRY_CHECK(streams_.bulk().end_bulk());
  FERRY_CHECK(wait_done());
  return departure_.check_again();
}

Result<std::string> Sender::with_clocks_of_destination(const std::string& look) {
  FERRY_TRY(clocks_, relate_clocks(link_));
  FERRY_TRY(image::Set set, image::decode(look));
  FERRY_TRY(const state::timens::Clocks offsets, state::timens::root_offsets(set));
  if (!clocks_.has_time_namespaces && !clocks_.same_boot) {
    return fail(
        Kind::unsupported,
        "the kernel of {} has no time namespaces (CONFIG_TIME_NS), so that CLOCK_MONOTONIC of the container could not go on there",
        options_.destination);
  }
  FERRY_CHECK(state::timens::go_on(set, clocks_.translate(offsets)));
  return image::encode(set);
}

Result<void> Sender::copy_ahead() {
  streams_.begin_pages();
  book_.step(Step::rounds);
  progress_.watch_rounds([this](int number, std::uint64_t pages) { book_.round(number, pages); });
  progress_.begin("send memory");
  FERRY_TRY(const bool ahead, watch_memory());
  Message message;
  message.mutable_precopy();
  FERRY_CHECK(link_.send(message));
  FERRY_CHECK(wait_done());
  if (options_.precopy) {
    FERRY_TRY(SegmentsOut segments, SegmentsOut::find(departure_.container().pid, segments_));
    rounds_->take_along(std::move(segments));
  }
  const bool can_postpone = options_.mode != Mode::pre_copy && !options_.switch_anyway && there_.late_pages;
  if (options_.mode == Mode::post_copy) {
    FERRY_CHECK(storage_.send_changes(link_));
    FERRY_CHECK(rounds_->send_segments(progress_));
    FERRY_CHECK(postpone_rest());
    return departure_.check_again();
  }
  if (!ahead) {
    FERRY_CHECK(storage_.send_changes(link_));
    if (options_.precopy && can_postpone) {
      FERRY_CHECK(postpone_rest());  // all of it within the pause is what nobody asked for
    }
    return departure_.check_again();
  }
  if (!can_postpone) {
    FERRY_CHECK(prepare_throttle());
  }
  const Controller::Limits limits{.pause_ms = static_cast<double>(options_.downtime_limit.count()),
                                  .fixed_ms = kOfTheLook * look_ms_,
                                  .rounds = options_.max_rounds,
                                  .time_ms = static_cast<double>(options_.timeout.count()) * 1000,
                                  .may_slow = throttle_.has_value(),
                                  .may_postpone = can_postpone};
  FERRY_TRY(const Controller::Step step,
            rounds_->run(limits, progress_, throttle_.has_value() ? &*throttle_ : nullptr, &storage_));
  const Round& last = rounds_->rounds().back();
  report_.predicted_pause_ms = last.predicted_ms;
  std::uint64_t sent = 0;
  for (const Round& round : rounds_->rounds()) {
    sent += round.bytes;
  }
  progress_.bytes(sent);
  progress_.say(
      fmt::format("{} rounds, the last one {} in {:.1f} ms", rounds_->rounds().size(), byte_text(last.bytes), last.ms));
  if (step == Controller::Step::postpone) {
    FERRY_CHECK(postpone_rest());
  }
  if (step == Controller::Step::give_up && !options_.switch_anyway) {
    return fail(
        Kind::os,
        "container {} writes faster than its memory can be sent{}: after {} rounds {} were left, which take {:.0f} ms; "
        "it stays here.  Allow a longer pause with --downtime-limit, or switch anyway with --switch-anyway",
        name(), last.share < 1 ? fmt::format(", even with {:.0f} % of its processor time", last.share * 100) : "",
        rounds_->rounds().size(), byte_text(last.bytes), last.ms);
  }
  return departure_.check_again();
}

Result<void> Sender::postpone_rest() {
  progress_.say(fmt::format(
      "the rest of its memory follows when container {} runs on {}: until it is there, its memory is on both "
      "hosts, and if one of them is lost, so is the container.  --mode pre-copy excludes that",
      name(), options_.destination));
  Message message;
  message.mutable_post_copy();
  FERRY_CHECK(link_.send(message));
  FERRY_CHECK(wait_done());
  supply_ = std::make_unique<PostCopySupply>(options_.streams.compress);
  line_ = std::make_unique<PostCopyLine>(
      PostCopyLine::Way{record_.move, options_.destination, options_.rsh, options_.streams}, *supply_);
  FERRY_TRY(const std::string why_not, line_->open());
  if (!why_not.empty()) {
    report_.notes.push_back(why_not);
  }
  return rounds_->postpone(*supply_);
}

Result<bool> Sender::watch_memory() {
  if (options_.precopy && options_.mode != Mode::post_copy) {
    auto watched = Rounds::watch(link_, streams_.pages(), departure_.container().pid, skeletons_);
    if (watched) {
      rounds_.emplace(std::move(*watched));
      return true;
    }
    if (watched.error().kind != Kind::unsupported) {
      return tl::unexpected<Error>(std::move(watched).error());
    }
    report_.notes.push_back("memory could not be sent ahead: " + watched.error().message());
  }
  rounds_.emplace(Rounds::none(link_, streams_.pages(), skeletons_));
  return false;
}

Result<void> Sender::prepare_throttle() {
  if (!options_.auto_converge) {
    return {};
  }
  auto throttle = Throttle::of(departure_.container().pid);
  if (!throttle) {
    report_.notes.push_back(fmt::format("the container could not be slowed down: {}", throttle.error().message()));
    return {};
  }
  FERRY_CHECK(book_.change([&](Entry& entry) { entry.processor_quota = throttle->undo(); }));
  throttle_.emplace(std::move(*throttle));
  return {};
}

Result<void> Sender::hand_over() {
  progress_.begin("move");
  const container::Container& container = departure_.container();
  record_.container_id = container.id;
  record_.container_name = container.name;
  record_.destination = options_.destination;
  record_.rsh = options_.rsh;
  const char* docker_host = ::getenv("DOCKER_HOST");
  record_.docker_host = docker_host == nullptr ? "" : docker_host;
  record_.freeze_cgroup = departure_.facts().freeze_cgroup;
  record_.restart_policy = container.restart_policy.name;
  record_.restart_retries = container.restart_policy.maximum_retries;
  record_.keep_source = options_.keep_source;
  record_.post_copy = line_ != nullptr;
  engine::DumpOptions options = dump_options();
  FERRY_TRY(Door door, door_for(options));
  FERRY_CHECK(door.prepare());
  book_.step(Step::freeze);
  HandOver keeper(link_, streams_, storage_, book_, record_, rounds_.has_value() ? &*rounds_ : nullptr,
                  throttle_.has_value() ? &*throttle_ : nullptr, door, line_.get());
  Silent listener;
  const std::uint64_t sent_before = streams_.sent();
  auto moved = engine::checkpoint(options, listener, keeper);
  if (!moved && !keeper.taken()) {
    door.reopen();
    return tl::unexpected<Error>(explained(std::move(moved).error()));
  }
  if (!moved) {
    // It lives there; what is left here has to end, whatever the engine stumbled over.
    report_.notes.push_back("the source did not end cleanly: " + moved.error().message());
    static_cast<void>(docker_.kill(container.id));
  }
  const std::uint64_t end =
      keeper.resumed_ns() == 0 ? monotonic_ns() : keeper.resumed_ns() - static_cast<std::uint64_t>(clocks_.ahead_ns);
  const std::uint64_t begin = keeper.times().begun_ns;
  report_.pause_ms = static_cast<double>(end - begin) / 1e6;
  report_.pause_error_ms = static_cast<double>(clocks_.error_ns) / 1e6;
  report_.layer_bytes = storage_.bytes();
  report_.memory_bytes = streams_.sent() - sent_before - storage_.rest_bytes();
  progress_.bytes(streams_.sent() - sent_before);
  connected_ = keeper.connected();
  if (rounds_.has_value()) {
    report_.rounds = rounds_->rounds();
  }
  if (line_ != nullptr && keeper.resumed_ns() != 0) {
    report_.postponed_bytes = rounds_->postponed_bytes();
  }
  const HandOver::Times& times = keeper.times();
  const auto part = [&](const char* what, std::uint64_t from, std::uint64_t to, std::uint64_t bytes) {
    report_.pause_parts.push_back({what, static_cast<double>(to - from) / 1e6, bytes});
  };
  part("stop, look, send memory", begin, times.memory_ns, report_.memory_bytes);
  part("send changed files", times.memory_ns, times.files_ns, storage_.rest_bytes());
  part("send the rest, record", times.files_ns, times.given_ns, 0);
  part("build the tree, hand over", times.given_ns, end, 0);
  for (const Lap& lap : keeper.their_parts()) {
    report_.pause_parts.push_back({"there: " + lap.name, lap.ms, 0});
  }
  return {};
}

void Sender::finish() {
  book_.step(Step::finish);
  progress_.begin("finish");
  const auto note = [&](const Result<void>& result) {
    if (!result) {
      report_.notes.push_back(result.error().message());
    }
  };
  note(departure_.wait_until_stopped());
  note(connected_ ? send_rest()
                  : Result<void>(fail(Kind::gone, "the connection broke, so the last lines of the log stayed here")));
  note(departure_.leave(options_.keep_source));
}

Result<void> Sender::send_rest() {
  FERRY_TRY(const auto pieces, log_.rest());
  for (const auto& piece : pieces) {
    Message head;
    head.mutable_log_tail();
    FERRY_CHECK(send_piece(head, piece));
  }
  Message finish;
  finish.mutable_finish();
  FERRY_CHECK(link_.send(finish));
  FERRY_TRY(const Message answer, answer_of(kWork));
  if (!answer.has_finished()) {
    return fail(Kind::corrupt, "{} does not say that it has finished", options_.destination);
  }
  const wire::Fetched& fetched = answer.finished().fetched();
  report_.fetched = {fetched.pages(), fetched.ms(), fetched.faults(), fetched.median_us(), fetched.p99_us()};
  for (const std::string& text : answer.finished().notes()) {
    report_.notes.push_back(text);
  }
  return {};
}

}  // namespace ferry::migrate

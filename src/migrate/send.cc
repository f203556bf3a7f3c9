#include "migrate/send.h"

#include <signal.h>
#include <stdlib.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <chrono>
#include <memory>
#include <optional>

#include "base/log.h"
#include "container/image_transfer.h"
#include "container/move_source.h"
#include "container/preflight.h"
#include "container/random_id.h"
#include "container/twin.h"
#include "engine/checkpoint.h"
#include "migrate/guard.h"
#include "migrate/hand_over.h"
#include "migrate/hello.h"
#include "migrate/link.h"
#include "migrate/logbook.h"
#include "migrate/message.pb.h"
#include "migrate/post_copy_line.h"
#include "migrate/post_copy_supply.h"
#include "migrate/pump.h"
#include "migrate/record.h"
#include "migrate/remote_shell.h"
#include "migrate/rounds.h"
#include "migrate/settle.h"
#include "migrate/storage_out.h"
#include "migrate/throttle.h"
#include "state/timens/timens.h"
#include "tracee/thread.h"

namespace ferry::migrate {
namespace {

using container::Departure;
using container::Docker;
using wire::Message;

constexpr int kPhases = 9;
constexpr std::uint64_t kGhostLimit = 64U << 20;  // bytes of a deleted file, which travel inside the freeze
constexpr std::chrono::seconds kGreeting(60);
constexpr std::chrono::minutes kWork(10);  // Docker loads an image, the disk takes a large layer

class Silent : public engine::Listener {
 public:
  Result<engine::Answer> on(const engine::Notice&) override { return engine::Answer{}; }
};

// What the pause takes besides memory, seen from how long the look has taken, which is the source's part of it:
// the destination makes what the source has looked at.
constexpr double kOfTheLook = 1.5;

// What is left to do when we were killed.
void clean_up_after(const Guard::Lines& lines) {
  for (const std::string& line : lines) {
    if (line.starts_with("move ")) {
      settle_patiently(line.substr(5), Role::source);
    }
  }
}

class HeldBack {  // signals that end a program, readable instead
 public:
  HeldBack() {
    sigset_t held;
    sigemptyset(&held);
    for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGQUIT}) {
      sigaddset(&held, number);
    }
    ::sigprocmask(SIG_BLOCK, &held, &before_);
    fd_.reset(::signalfd(-1, &held, SFD_CLOEXEC | SFD_NONBLOCK));
  }
  HeldBack(const HeldBack&) = delete;
  HeldBack& operator=(const HeldBack&) = delete;
  ~HeldBack() {
    // One that was obeyed has had its effect.
    signalfd_siginfo seen{};
    while (::read(fd_.get(), &seen, sizeof seen) == sizeof seen) {
    }
    ::sigprocmask(SIG_SETMASK, &before_, nullptr);
  }
  [[nodiscard]] int fd() const { return fd_.get(); }

 private:
  sigset_t before_{};
  UniqueFd fd_;
};

class Sender {
 public:
  Sender(const SendOptions& options, Docker& docker, Departure& departure, Logbook& book, RemoteShell& shell, int interrupt)
      : options_(options), docker_(docker), departure_(departure), book_(book), shell_(shell),
        storage_(departure), link_(shell.take_output(), shell.take_input(), interrupt, options.destination), streams_(link_, options.streams),
        progress_(kPhases, options.quiet) {}

  Result<SendReport> run() {
    FERRY_CHECK(reach());
    if (auto ready = prepare(); !ready) {
      return tl::unexpected<Error>(explained(std::move(ready).error()));
    }
    FERRY_CHECK(hand_over());
    finish();
    progress_.end();
    report_.phases = progress_.phases();
    report_.bytes = streams_.sent();
    return std::move(report_);
  }

 private:
  // Everything that is done while the container runs on here.
  Result<void> prepare() {
    FERRY_CHECK(offer());
    FERRY_CHECK(connect());
    FERRY_CHECK(send_image());
    FERRY_CHECK(create());
    FERRY_CHECK(send_files());
    FERRY_CHECK(start());
    return copy_ahead();
  }

  Result<void> reach() {
    book_.step(Step::reach);
    progress_.begin("reach " + options_.destination);
    FERRY_TRY(here_, facts_of_this_host());
    auto greeted = [&]() -> Result<HostFacts> {
      FERRY_CHECK(send_hello(link_, here_));
      return receive_hello(link_, kGreeting);
    }();
    if (!greeted && greeted.error().kind == Kind::gone) {
      link_.close();
      return fail(Kind::gone, "{} cannot be reached: {}", options_.destination, shell_.obituary());
    }
    FERRY_TRY(there_, std::move(greeted));
    shell_.show_errors();
    return {};
  }

  Result<Message> answer_of(std::chrono::milliseconds limit) {
    Message message;
    FERRY_CHECK(link_.receive(message, limit));
    return message;
  }

  Result<void> wait_done() {
    FERRY_TRY(const Message message, answer_of(kWork));
    if (message.has_refused()) {  // how it gives up once the twin is started
      return fail(Kind::os, "{}: {}", options_.destination, message.refused().reason());
    }
    if (!message.has_done()) {
      return fail(Kind::corrupt, "{} does not say that it has done its part", options_.destination);
    }
    return {};
  }

  Result<void> offer() {
    book_.step(Step::offer);
    progress_.begin("compare hosts");
    record_.move = book_.entry().move;
    Message message;
    wire::Offer& offer = *message.mutable_offer();
    offer.set_move(record_.move);
    offer.set_container_json(departure_.container().inspect_json);
    offer.set_networks_json(container::encode_networks(departure_.networks()));
    for (const std::string& chain_id : container::chain_ids(departure_.image().diff_ids)) {
      offer.add_chain_ids(chain_id);
    }
    offer.set_image(departure_.image().id);
    offer.set_volumes_json(container::encode_volumes(departure_.volumes()));
    FERRY_CHECK(link_.send(message));
    FERRY_TRY(const Message answer, answer_of(kGreeting));
    if (!answer.has_reply()) {
      return fail(Kind::corrupt, "{} does not answer the offer", options_.destination);
    }
    const wire::Reply& reply = answer.reply();
    std::vector<std::string> obstacles = host_obstacles(here_, there_);
    if (options_.mode == Mode::post_copy && !there_.late_pages) {
      obstacles.push_back("its kernel cannot leave memory missing (userfaultfd), which --mode post-copy needs");
    }
    obstacles.insert(obstacles.end(), reply.obstacles().begin(), reply.obstacles().end());
    if (!obstacles.empty()) {
      std::string text;
      for (const std::string& obstacle : obstacles) {
        text += (text.empty() ? "" : "; ") + obstacle;
      }
      return fail(Kind::unsupported, "container {} cannot move to {}: {}", name(), options_.destination, text);
    }
    report_.notes.insert(report_.notes.end(), reply.differences().begin(), reply.differences().end());
    progress_.release();
    present_ = {reply.present_chain_ids().begin(), reply.present_chain_ids().end()};
    has_image_ = reply.has_image();
    keeps_addresses_ = reply.keeps_addresses();
    return {};
  }

  Result<void> connect() {
    FERRY_TRY(const std::string why_not, streams_.open());
    if (!why_not.empty()) {
      report_.notes.push_back(why_not);
    }
    report_.streams = streams_.count();
    return {};
  }

  Result<void> send_image() {
    if (has_image_) {
      return {};
    }
    book_.step(Step::image);
    progress_.begin("send image layers");
    Message message;
    message.mutable_image();
    FERRY_CHECK(link_.send(message));
    container::ImageReport sent;
    FERRY_TRY(report_.image_bytes, send_written(
                                       streams_.bulk(),
                                       [&](int fd) -> Result<void> {
                                         FERRY_TRY(sent, container::export_image(docker_, departure_.image().id, present_, fd));
                                         return {};
                                       },
                                       [&](std::uint64_t bytes) { progress_.bytes(bytes); }));
    FERRY_CHECK(wait_done());
    progress_.bytes(report_.image_bytes);
    progress_.say(fmt::format("{} of {} image layers were missing there: {}", sent.layers_sent, sent.layers, byte_text(report_.image_bytes)));
    return {};
  }

  Result<void> create() {
    progress_.begin("create the twin");
    // Synced before it is done, so that it can be undone whatever happens.
    FERRY_CHECK(book_.change([&](Entry& entry) { entry.restarts_suspended = departure_.has_restarts(); }));
    book_.step(Step::twin);
    FERRY_CHECK(departure_.suspend_restarts());
    Message message;
    message.mutable_create();
    FERRY_CHECK(link_.send(message));
    return wait_done();
  }

  Result<void> send_files() {
    book_.step(Step::files);
    progress_.begin("send files and log");
    FERRY_CHECK(storage_.send_all(link_, streams_.bulk(), [&](std::uint64_t bytes) { progress_.bytes(bytes); }));
    if (!storage_.why_it_looks().empty()) {
      report_.notes.push_back("every file of the container is looked at within the pause: " + storage_.why_it_looks());
    }
    report_.layer_bytes = storage_.bytes();
    FERRY_TRY(log_, departure_.log());
    FERRY_TRY(const auto pieces, log_.earlier());
    std::uint64_t log_bytes = 0;
    for (const auto& piece : pieces) {
      Message head;
      head.mutable_log_file()->set_suffix(piece.suffix);
      FERRY_TRY(const auto bytes, send_piece(head, piece));
      log_bytes += bytes;
    }
    progress_.bytes(report_.layer_bytes + log_bytes);
    return {};
  }

  Result<std::uint64_t> send_piece(const Message& head, const container::LeavingLog::Piece& piece) {
    FERRY_CHECK(link_.send(head));
    std::vector<std::byte> buffer(256 << 10);
    std::uint64_t at = piece.from;
    while (at < piece.to) {
      const ssize_t got = ::pread(piece.fd.get(), buffer.data(), std::min<std::uint64_t>(buffer.size(), piece.to - at), static_cast<off_t>(at));
      if (got < 0 && errno != EINTR) {
        return sys_fail("pread(log)");
      }
      if (got == 0) {
        return fail(Kind::corrupt, "the log of container {} became shorter while it was read", name());
      }
      FERRY_CHECK(streams_.bulk().send_bulk(std::span(buffer).first(static_cast<std::size_t>(std::max<ssize_t>(got, 0)))));
      at += static_cast<std::uint64_t>(std::max<ssize_t>(got, 0));
    }
    FERRY_CHECK(streams_.bulk().end_bulk());
    return piece.to - piece.from;
  }

  [[nodiscard]] engine::DumpOptions dump_options() const {
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
    return out;
  }

  // It does better than the engine's lock, behind which packets are lost.
  Result<Door> door_for(engine::DumpOptions& options) const {
    FERRY_TRY(Door door, Door::of(departure_.container().pid));
    if (door.exists()) {
      options.network_lock = engine::NetworkLock::skip;
    }
    return door;
  }

  // The runtime needs to know what the tree looks like; a short look at it, without its memory.
  Result<void> start() {
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

  // The skeletons get the clocks that the tree will find there.
  Result<std::string> with_clocks_of_destination(const std::string& look) {
    FERRY_TRY(clocks_, relate_clocks(link_));
    FERRY_TRY(image::Set set, image::decode(look));
    FERRY_TRY(const state::timens::Clocks offsets, state::timens::root_offsets(set));
    if (!clocks_.has_time_namespaces && !clocks_.same_boot) {
      return fail(Kind::unsupported, "the kernel of {} has no time namespaces (CONFIG_TIME_NS), so that CLOCK_MONOTONIC of the container could not go on there",
                  options_.destination);
    }
    FERRY_CHECK(state::timens::go_on(set, clocks_.translate(offsets)));
    return image::encode(set);
  }

  // Memory, while the container goes on writing to it.
  Result<void> copy_ahead() {
    streams_.begin_pages();
    book_.step(Step::rounds);
    progress_.watch_rounds([this](int number, std::uint64_t pages) { book_.round(number, pages); });
    progress_.begin("send memory");
    FERRY_TRY(const bool ahead, watch_memory());
    Message message;
    message.mutable_precopy();
    FERRY_CHECK(link_.send(message));
    FERRY_CHECK(wait_done());
    const bool can_postpone = options_.mode != Mode::pre_copy && !options_.switch_anyway && there_.late_pages;
    if (options_.mode == Mode::post_copy) {
      FERRY_CHECK(storage_.send_changes(link_));
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
    FERRY_TRY(const Controller::Step step, rounds_->run(limits, progress_, throttle_.has_value() ? &*throttle_ : nullptr, &storage_));
    const Round& last = rounds_->rounds().back();
    report_.predicted_pause_ms = last.predicted_ms;
    std::uint64_t sent = 0;
    for (const Round& round : rounds_->rounds()) {
      sent += round.bytes;
    }
    progress_.bytes(sent);
    progress_.say(fmt::format("{} rounds, the last one {} in {:.1f} ms", rounds_->rounds().size(), byte_text(last.bytes), last.ms));
    if (step == Controller::Step::postpone) {
      FERRY_CHECK(postpone_rest());
    }
    if (step == Controller::Step::give_up && !options_.switch_anyway) {
      return fail(Kind::os,
                  "container {} writes faster than its memory can be sent{}: after {} rounds {} were left, which take {:.0f} ms; "
                  "it stays here.  Allow a longer pause with --downtime-limit, or switch anyway with --switch-anyway",
                  name(), last.share < 1 ? fmt::format(", even with {:.0f} % of its processor time", last.share * 100) : "",
                  rounds_->rounds().size(), byte_text(last.bytes), last.ms);
    }
    return departure_.check_again();
  }

  // What is left is fetched by the destination when the container runs there.
  Result<void> postpone_rest() {
    progress_.say(fmt::format("the rest of its memory follows when container {} runs on {}: until it is there, its memory is on both "
                              "hosts, and if one of them is lost, so is the container.  --mode pre-copy excludes that",
                              name(), options_.destination));
    Message message;
    message.mutable_post_copy();
    FERRY_CHECK(link_.send(message));
    FERRY_CHECK(wait_done());
    supply_ = std::make_unique<PostCopySupply>(options_.streams.compress);
    line_ = std::make_unique<PostCopyLine>(PostCopyLine::Way{record_.move, options_.destination, options_.rsh, options_.streams}, *supply_);
    FERRY_TRY(const std::string why_not, line_->open());
    if (!why_not.empty()) {
      report_.notes.push_back(why_not);
    }
    return rounds_->postpone(*supply_);
  }

  // Whether it can be sent while the container writes to it.
  Result<bool> watch_memory() {
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

  // How to undo it has to be known to others before anything is done.
  Result<void> prepare_throttle() {
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

  Result<void> hand_over() {
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
    const std::uint64_t end = keeper.resumed_ns() == 0 ? monotonic_ns()
                                                       : keeper.resumed_ns() - static_cast<std::uint64_t>(clocks_.ahead_ns);
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

  // A destination that refuses says why before its end of the connection closes.
  Error explained(Error error) {
    if (error.kind == Kind::gone) {
      Message message;
      const auto last = link_.receive(message, std::chrono::seconds(5));
      if (last && message.has_refused()) {
        return Error{.kind = Kind::os, .what = fmt::format("{}: {}", options_.destination, message.refused().reason()), .during = {}};
      }
      if (!last && last.error().kind == Kind::os) {
        return last.error();
      }
    }
    return error;
  }

  // The container lives over there; whatever fails now is worth a note and no more.
  void finish() {
    book_.step(Step::finish);
    progress_.begin("finish");
    const auto note = [&](const Result<void>& result) {
      if (!result) {
        report_.notes.push_back(result.error().message());
      }
    };
    note(departure_.wait_until_stopped());
    note(connected_ ? send_rest() : Result<void>(fail(Kind::gone, "the connection broke, so the last lines of the log stayed here")));
    note(departure_.leave(options_.keep_source));
  }

  Result<void> send_rest() {
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

  [[nodiscard]] const std::string& name() const { return departure_.container().name; }

  const SendOptions& options_;
  Docker& docker_;
  Departure& departure_;
  bool keeps_addresses_ = false;  // the twin has the same ones
  std::set<NsPid> skeletons_;     // that the destination has
  std::optional<Rounds> rounds_;  // what was sent ahead
  double look_ms_ = 0;            // how long the look took
  std::optional<Throttle> throttle_;
  std::unique_ptr<PostCopySupply> supply_;  // of what is fetched after the hand-over
  std::unique_ptr<PostCopyLine> line_;      // uses it
  Logbook& book_;
  RemoteShell& shell_;
  StorageOut storage_;
  Link link_;
  StreamsOut streams_;
  Progress progress_;
  SendReport report_;
  HostFacts here_;
  HostFacts there_;
  ClockRelation clocks_;
  GivenRecord record_;
  std::set<std::string> present_;
  bool has_image_ = false;
  bool connected_ = true;
  container::LeavingLog log_;
};

Result<Logbook> open_logbook(const SendOptions& options, const Departure& departure) {
  const container::Container& container = departure.container();
  Entry entry;
  FERRY_TRY(entry.move, container::random_id());
  entry.role = Role::source;
  entry.container_id = container.id;
  entry.container_name = container.name;
  entry.peer = options.destination;
  entry.rsh = options.rsh;
  entry.restart_policy = container.restart_policy.name;
  entry.restart_retries = container.restart_policy.maximum_retries;
  entry.keep_source = options.keep_source;
  entry.freeze_cgroup = departure.facts().freeze_cgroup;
  return Logbook::open(std::move(entry));
}

// A move that failed because the container is not what it was a moment ago says so, and not what that broke.
Error what_the_user_did(Docker& docker, const container::Container& container, Error error) {
  const auto now = docker.container(container.id);
  if (!now && now.error().kind == Kind::gone) {
    return Error{.kind = Kind::gone, .what = fmt::format("container {} was removed while it was being moved", container.name), .during = {}};
  }
  if (now && !now->running()) {
    const bool paused = now->status == "paused";
    return Error{.kind = Kind::gone,
                 .what = fmt::format("container {} {} while it was being moved; it stays here, {}", container.name, paused ? "was paused" : "ended", now->status),
                 .during = {}};
  }
  if (now && now->pid != container.pid) {
    return Error{.kind = Kind::invalid, .what = fmt::format("container {} was started anew while it was being moved; it stays here", container.name), .during = {}};
  }
  return error;
}

}  // namespace

Result<SendReport> send(const SendOptions& options) {
  FERRY_TRY(Guard guard, Guard::post(clean_up_after));
  tracee::block_sigchld();
  ::signal(SIGPIPE, SIG_IGN);
  const HeldBack held;
  FERRY_TRY(Docker docker, Docker::connect());
  FERRY_TRY(Departure departure, Departure::prepare(docker, {.container = options.container,
                                                             .drop_exec = options.drop_exec,
                                                             .keep_source = options.keep_source,
                                                             .volumes = options.volumes}));
  FERRY_TRY(Logbook book, open_logbook(options, departure));
  FERRY_CHECK(guard.tell("move " + book.entry().move));
  book.step(Step::look);
  const auto moved = [&]() -> Result<SendReport> {
    FERRY_CHECK(container::wait_for_health_check(docker, departure.container(), std::chrono::seconds(60)));
    FERRY_TRY(RemoteShell shell, RemoteShell::start(options.rsh, options.destination, {"ferry", "receive"}));
    return Sender(options, docker, departure, book, shell, held.fd()).run();
  };
  auto report = moved();
  if (!report) {
    if (auto back = departure.resume_restarts(); !back) {
      // Not the end of it: the guard goes on trying.
      log::warning("{}", back.error().message());
      return report;
    }
    const Error error = what_the_user_did(docker, departure.container(), std::move(report).error());
    book.close(Outcome::stayed, error.message());
    guard.dismiss();
    return tl::unexpected<Error>(error);
  }
  book.close(Outcome::moved);
  guard.dismiss();
  report->container = departure.container().name;
  report->notes.insert(report->notes.begin(), departure.notes().begin(), departure.notes().end());
  return report;
}

}  // namespace ferry::migrate

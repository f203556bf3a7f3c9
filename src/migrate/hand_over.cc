#include "migrate/hand_over.h"

#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <ctime>

#include "base/log.h"
#include "migrate/doubt.h"
#include "migrate/freezer.h"
#include "migrate/hello.h"
#include "migrate/message.pb.h"
#include "migrate/revival.h"

namespace ferry::migrate {
namespace {

using Verdict = engine::Keeper::Verdict;

// The destination builds the tree meanwhile.  Whoever takes longer is asked, and has it or has it no more.
constexpr std::chrono::seconds kAnswerLimit(30);
constexpr std::chrono::seconds kFirstTries(60);
constexpr int kBetweenSeconds = 2;

class NoPages : public image::PageSink {
 public:
  void describe(std::uint64_t, std::uint64_t, std::uint32_t) override {}
  Result<void> append(std::span<const std::byte>) override { return {}; }
  Result<void> finish() override { return {}; }
};

// Sleeps, or ends with the first of the signals that the program holds back.
bool user_wants_to_stop(int seconds) {
  sigset_t wanted;
  sigemptyset(&wanted);
  for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGQUIT}) {
    sigaddset(&wanted, number);
  }
  const timespec limit{.tv_sec = seconds, .tv_nsec = 0};
  return ::sigtimedwait(&wanted, nullptr, &limit) > 0;
}

// To let the tree run on from here its connections, packets and freezer had to be put right as after a crash.
[[noreturn]] void leave_it_to_the_guard() {
  fmt::print(stderr, "ferry: the container is to run on here, as the user wants it\n");
  ::_exit(1);
}

}  // namespace

Result<std::unique_ptr<image::PageSink>> LookKeeper::pages(image::Set&, image::Name) {
  return std::unique_ptr<image::PageSink>(std::make_unique<NoPages>());
}

Result<void> LookKeeper::about_to_stop() {
  FERRY_CHECK(door_.hold_back_new_connections());
  began_ns_ = monotonic_ns();
  return door_.withhold();
}

Result<Verdict> LookKeeper::end() {
  ended_ns_ = monotonic_ns();
  return Verdict::run_on;
}

Result<void> LookKeeper::images(const image::Set& set) {
  for (const image::Name& name : set.names(image::Type::mm)) {
    processes_.insert(NsPid(static_cast<pid_t>(name.id)));
  }
  segments_ = SegmentsOut::to_settle(set);
  FERRY_TRY(encoded_, image::encode(set));
  return {};
}

Result<std::unique_ptr<image::PageSink>> HandOver::pages(image::Set&, image::Name pagemap) {
  FERRY_CHECK(link_.check_interrupt());
  if (auto known = rounds_ == nullptr ? nullptr : rounds_->last_of_segment(pagemap); known != nullptr) {
    return known;
  }
  return std::unique_ptr<image::PageSink>(std::make_unique<OrderedPages>(streams_.pages(), pagemap));
}

// Thawed by us a paused container would run on where its user wanted it to stand still.
Result<void> HandOver::about_to_stop() {
  FERRY_TRY(const bool paused, is_frozen(record_.freeze_cgroup));
  if (paused) {
    return fail(Kind::invalid, "container {} was paused", record_.container_name);
  }
  FERRY_CHECK(door_.hold_back_new_connections());
  streams_.hurry();
  if (rounds_ != nullptr) {
    FERRY_CHECK(rounds_->catch_up());
  }
  if (throttle_ != nullptr) {
    // A thread without processor time does not even come to a stop.
    FERRY_CHECK(throttle_->lift());
  }
  times_.begun_ns = monotonic_ns();
  return door_.withhold();
}

// The files first: building the tree opens them.
Result<void> HandOver::images(const image::Set& set) {
  wire::Message end;
  FERRY_TRY(const std::uint64_t mark, streams_.pages().mark(true));
  end.mutable_pages_end()->set_mark(mark);
  FERRY_CHECK(link_.send(end));
  if (rounds_ != nullptr) {
    rounds_->ended();
  }
  times_.memory_ns = monotonic_ns();
  FERRY_CHECK(storage_.send_rest(link_, streams_.bulk(), set).during("sending the files that changed"));
  times_.files_ns = monotonic_ns();
  FERRY_TRY(const std::string bytes, image::encode(set));
  wire::Message message;
  message.mutable_images();
  FERRY_CHECK(link_.send(message));
  FERRY_CHECK(streams_.bulk().send_bulk(std::as_bytes(std::span(bytes))));
  return streams_.bulk().end_bulk();
}

Result<void> HandOver::send_packets() {
  FERRY_TRY(const auto arrived, door_.arrived());
  if (arrived.empty()) {
    return {};
  }
  wire::Message message;
  for (const std::string& packet : arrived) {
    message.mutable_packets()->add_packets(packet);
  }
  return link_.send(message);
}

// From the record on, only the destination's word decides.  The frozen cgroup holds the tree if we die.
Result<Verdict> HandOver::end() {
  FERRY_CHECK(link_.check_interrupt());
  FERRY_CHECK(write_given(record_));
  const auto undo = [&] {
    static_cast<void>(thaw(record_.freeze_cgroup));
    forget_given(record_.move);
  };
  if (auto frozen = freeze(record_.freeze_cgroup); !frozen) {
    undo();
    return tl::unexpected<Error>(std::move(frozen).error());
  }
  if (auto shut = door_.shut(); !shut) {
    undo();
    return tl::unexpected<Error>(std::move(shut).error());
  }
  if (auto sent = send_packets(); !sent) {
    undo();
    return tl::unexpected<Error>(std::move(sent).error());
  }
  book_.step(Step::record);
  link_.no_interrupts();
  times_.given_ns = monotonic_ns();
  wire::Message given;
  given.mutable_given();
  wire::Message answer;
  auto answered = link_.send(given);
  book_.step(Step::given);
  // A destination that failed has said so before the connection broke.
  auto received = link_.receive(answer, kAnswerLimit);
  if (received) {
    answered = {};
  } else {
    answered = std::move(received);
  }
  if (!answered || (!answer.has_taken() && !answer.has_refused())) {
    connected_ = false;
    return ask_until_known(answered
                               ? Error{.kind = Kind::corrupt, .what = "the destination's answer is none", .during = {}}
                               : answered.error());
  }
  if (answer.has_taken()) {
    resumed_ns_ = answer.taken().resumed_ns();
    for (const auto& part : answer.taken().parts()) {
      their_parts_.push_back({part.name(), part.ms()});
    }
    return decided(Decision::taken, {});
  }
  return decided(Decision::refused, answer.refused().reason());
}

// The logbook before the record goes: whoever finds neither takes the container for ours.
Result<Verdict> HandOver::decided(Decision decision, const std::string& reason) {
  book_.step(Step::decided);
  const bool noted = book_.decide(decision == Decision::taken ? Outcome::moved : Outcome::stayed).has_value();
  if (decision == Decision::taken) {
    taken_ = true;
    // What arrived in between; lost, it would be sent again by its sender.
    static_cast<void>(connected_ ? send_packets() : Result<void>());
    door_.leave_shut();
    if (line_ != nullptr) {
      FERRY_CHECK(serve_rest());
    }
    FERRY_CHECK(kill_frozen(record_.freeze_cgroup));
    if (noted) {
      forget_given(record_.move);
    }
    return Verdict::as_asked;
  }
  FERRY_CHECK(thaw(record_.freeze_cgroup));
  forget_given(record_.move);
  return fail(Kind::os, "{}: {}", record_.destination, reason);
}

// The tree runs there, and what it has not fetched yet is here only.
Result<void> HandOver::serve_rest() {
  book_.step(Step::pages);
  std::string said;  // what was last told to be wrong
  const auto tell = [&](const PostCopyLine::Standing& standing) -> Result<void> {
    book_.fetching(0, standing.connected);
    if (!standing.connected && said != standing.trouble) {
      fmt::print(
          stderr,
          "ferry: {}; container {} runs on {} and waits for pages that are here.  ferry goes on trying to reach it; "
          "\"ferry resume {} --via ADDRESS\" names another way.  If {} is lost for good, \"ferry resolve {} --revive-source\" lets "
          "the container run on here, as it was when it was given away\n",
          standing.trouble, record_.container_name, record_.destination, record_.move.substr(0, 12),
          record_.destination, record_.move.substr(0, 12));
    } else if (standing.connected && !said.empty()) {
      fmt::print(stderr, "ferry: {} is reached again\n", record_.destination);
    }
    said = standing.trouble;
    if (!standing.connected && revival_is_wished(record_.move)) {
      leave_it_to_the_guard();
    }
    if (user_wants_to_stop(0)) {
      fmt::print(
          stderr,
          "ferry: container {} runs on {}, and a part of its memory is still here: ferry goes on giving it, in the background\n",
          record_.container_name, record_.destination);
      // Returning would end the tree, and with it this memory.  The guard goes on.
      ::_exit(1);
    }
    return {};
  };
  FERRY_CHECK(line_->wait(tell));
  forget_detour(record_.move);
  return {};
}

Result<Verdict> HandOver::ask_until_known(const Error& broken) {
  book_.doubt();  // before it is said: who reads the one and asks for the other finds it
  fmt::print(stderr,
             "ferry: {}; it is not known whether {} took the container, so it stays frozen here while ferry asks\n",
             broken.message(), record_.destination);
  const auto begin = std::chrono::steady_clock::now();
  bool said = false;
  for (;;) {
    const auto answer = ask(record_.rsh, record_.destination, record_.move);
    if (answer) {
      return decided(*answer, "the connection broke, and the destination has not taken the container");
    }
    if (!said && std::chrono::steady_clock::now() - begin > kFirstTries) {
      said = true;
      fmt::print(
          stderr,
          "ferry: {} does not answer ({}): container {} stays frozen until it does; ferry goes on asking, also in the background after Ctrl-C, and so does \"ferry resolve {}\"\n",
          record_.destination, answer.error().message(), record_.container_name, record_.move);
    }
    if (revival_is_wished(record_.move)) {
      leave_it_to_the_guard();
    }
    if (user_wants_to_stop(kBetweenSeconds)) {
      fmt::print(stderr, "ferry: container {} stays frozen: ferry resolve {} asks {} again\n", record_.container_name,
                 record_.move, record_.destination);
      // Returning would let the tree run on, which only the destination's word allows.  The guard goes on.
      ::_exit(1);
    }
  }
}

}  // namespace ferry::migrate

#include <fcntl.h>

#include "base/log.h"
#include "migrate/announce.h"
#include "migrate/freezer.h"
#include "migrate/hello.h"
#include "migrate/receiver.h"
#include "migrate/record.h"
#include "state/net_gate/net_gate.h"
#include "sys/file.h"

namespace ferry::migrate {
namespace {

using wire::Message;

}  // namespace

Result<bool> Receiver::packets(const wire::Packets& packets) {
  if (stage_ != Stage::grown && stage_ != Stage::taken) {
    return fail(Kind::corrupt, "{} sent packets at the wrong time", link_.peer());
  }
  packets_.insert(packets_.end(), packets.packets().begin(), packets.packets().end());
  if (stage_ == Stage::taken) {
    deliver_packets();
  }
  return false;
}

void Receiver::deliver_packets() {
  const auto deliver = [&]() -> Result<void> {
    FERRY_TRY(const UniqueFd ns, sys::open(fmt::format("/proc/{}/ns/net", root_), O_RDONLY));
    FERRY_CHECK(state::net_gate::deliver(ns.get(), packets_));
    return {};
  };
  if (auto done = packets_.empty() ? Result<void>() : deliver(); !done) {
    log::warning("{}", done.error().message());
  }
  packets_.clear();
}

Result<bool> Receiver::take() {
  link_.end_with(-1, {});
  if (!twin_->alive() || twin_died()) {
    return fail(Kind::gone, "the twin was stopped on the destination");
  }
  laps_.skip();
  if (has_log_) {
    FERRY_CHECK(held_.hold(shim_, root_));
  }
  if (intake_ != nullptr) {
    FERRY_CHECK(intake_->taken());
  }
  FERRY_TRY(const Decision decision, decide(*taken_record_));
  if (decision != Decision::taken) {
    return fail(Kind::gone, "the source asked what became of the container, and was told that it is not here");
  }
  laps_.add("record");
  stage_ = Stage::taken;
  book_->step(Step::taken);
  understudy_->take_the_stage();
  auto resumed = twin_->resume();
  if (auto thawed = thaw(freeze_cgroup_); !thawed) {
    log::error(thawed.error());
  }
  deliver_packets();
  laps_.add("let go");
  Message message;
  for (const std::vector<Lap>& some : {twin_->laps(), laps_.all()}) {
    for (const Lap& lap : some) {
      wire::Taken::Part& part = *message.mutable_taken()->add_parts();
      part.set_name(lap.name);
      part.set_ms(lap.ms);
    }
  }
  message.mutable_taken()->set_resumed_ns(monotonic_ns());
  if (!resumed) {
    log::error(resumed.error());
  }
  book_->step(Step::resumed);
  if (auto announced = announce_addresses(root_); !announced) {
    notes_.push_back("the container's address was not announced: " + announced.error().message());
  }
  if (auto told = link_.send(message); !told) {
    // It will ask again, by another connection.
    log::warning("{}", told.error().message());
  }
  understudy_.reset();
  if (auto clean = twin_->clean_up(); !clean) {
    log::warning("{}", clean.error().message());
  }
  return false;
}

Result<void> Receiver::prepare_for_our_death() {
  FERRY_CHECK(freeze(freeze_cgroup_));
  held_still_ = true;
  FERRY_CHECK(twin_->outlive_us());
  FERRY_TRY(Understudy understudy, post_understudy());
  understudy_.emplace(std::move(understudy));
  book_->step(Step::hold);
  laps_.add("prepare for our death");
  return {};
}

Result<Understudy> Receiver::post_understudy() {
  if (intake_ != nullptr) {
    // A tree whose memory nobody fetches any more would read zeros: its warden ends it.
    return Understudy::post([this] { link_.close(); }, [] {}, [] {});
  }
  const auto thaw_it = [this] { static_cast<void>(thaw(freeze_cgroup_)); };
  // The guard has to wait for it, so it keeps the guard's pipe; the source must see that we are gone.
  const auto at_once = [this] { link_.close(); };
  const auto at_death = [this, thaw_it] {
    const auto decided = decision_of(move_);
    if (decided.has_value() && *decided == Decision::taken) {
      static_cast<void>(twin_->resume_untraced());
      thaw_it();
    }
  };
  return Understudy::post(at_once, at_death, thaw_it);
}

Result<bool> Receiver::output_is_late(const Error& error) {
  held_.release();
  late_ = true;
  notes_.push_back(fmt::format(
      "the last lines of the log did not come in time ({}): they may stand behind later ones, or be missing",
      error.message()));
  return false;
}

Result<bool> Receiver::finish() {
  // Before anything else: containerd, if it is started again meanwhile, gives a shim 5 s to answer and then takes
  // its container for dead.
  held_.release();
  book_->step(Step::finish);
  FERRY_CHECK(arrival_->finish());
  if (auto forgotten = container::forget_aside(arrival_->volumes().to_put_aside, move_); !forgotten) {
    notes_.push_back(forgotten.error().message());
  }
  Message message;
  for (const std::string& note : notes_) {
    message.mutable_finished()->add_notes(note);
  }
  if (fetched_.has_value()) {
    *message.mutable_finished()->mutable_fetched() = *fetched_;
  }
  message.mutable_finished();
  FERRY_CHECK(link_.send(message));
  forget_decision(move_);
  return true;
}

}  // namespace ferry::migrate

#include "migrate/sender.h"

#include <chrono>

#include "container/image_transfer.h"
#include "container/twin.h"
#include "migrate/message.pb.h"
#include "migrate/pump.h"

namespace ferry::migrate {
namespace {

using wire::Message;

constexpr std::chrono::seconds kGreeting(60);

}  // namespace

Result<SendReport> Sender::run() {
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

Result<void> Sender::prepare() {
  FERRY_CHECK(offer());
  FERRY_CHECK(connect());
  FERRY_CHECK(send_image());
  FERRY_CHECK(create());
  FERRY_CHECK(send_files());
  FERRY_CHECK(start());
  return copy_ahead();
}

Result<void> Sender::reach() {
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

Result<Message> Sender::answer_of(std::chrono::milliseconds limit) {
  Message message;
  FERRY_CHECK(link_.receive(message, limit));
  return message;
}

Result<void> Sender::wait_done() {
  FERRY_TRY(const Message message, answer_of(kWork));
  if (message.has_refused()) {  // how it gives up once the twin is started
    return fail(Kind::os, "{}: {}", options_.destination, message.refused().reason());
  }
  if (!message.has_done()) {
    return fail(Kind::corrupt, "{} does not say that it has done its part", options_.destination);
  }
  return {};
}

Result<void> Sender::offer() {
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

Result<void> Sender::connect() {
  FERRY_TRY(const std::string why_not, streams_.open());
  if (!why_not.empty()) {
    report_.notes.push_back(why_not);
  }
  report_.streams = streams_.count();
  return {};
}

Result<void> Sender::send_image() {
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
                                       FERRY_TRY(sent,
                                                 container::export_image(docker_, departure_.image().id, present_, fd));
                                       return {};
                                     },
                                     [&](std::uint64_t bytes) { progress_.bytes(bytes); }));
  FERRY_CHECK(wait_done());
  progress_.bytes(report_.image_bytes);
  progress_.say(fmt::format("{} of {} image layers were missing there: {}", sent.layers_sent, sent.layers,
                            byte_text(report_.image_bytes)));
  return {};
}

Result<void> Sender::create() {
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

Result<void> Sender::send_files() {
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

Result<std::uint64_t> Sender::send_piece(const Message& head, const container::LeavingLog::Piece& piece) {
  FERRY_CHECK(link_.send(head));
  std::vector<std::byte> buffer(256 << 10);
  std::uint64_t at = piece.from;
  while (at < piece.to) {
    const ssize_t got = ::pread(piece.fd.get(), buffer.data(), std::min<std::uint64_t>(buffer.size(), piece.to - at),
                                static_cast<off_t>(at));
    if (got < 0 && errno != EINTR) {
      return sys_fail("pread(log)");
    }
    if (got == 0) {
      return fail(Kind::corrupt, "the log of container {} became shorter while it was read", name());
    }
    FERRY_CHECK(
        streams_.bulk().send_bulk(std::span(buffer).first(static_cast<std::size_t>(std::max<ssize_t>(got, 0)))));
    at += static_cast<std::uint64_t>(std::max<ssize_t>(got, 0));
  }
  FERRY_CHECK(streams_.bulk().end_bulk());
  return piece.to - piece.from;
}

Error Sender::explained(Error error) {
  if (error.kind == Kind::gone) {
    Message message;
    const auto last = link_.receive(message, std::chrono::seconds(5));
    if (last && message.has_refused()) {
      return Error{.kind = Kind::os,
                   .what = fmt::format("{}: {}", options_.destination, message.refused().reason()),
                   .during = {}};
    }
    if (!last && last.error().kind == Kind::os) {
      return last.error();
    }
  }
  return error;
}

}  // namespace ferry::migrate

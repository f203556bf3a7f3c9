#include "migrate/streams_in.h"

#include <stdlib.h>

#include "base/log.h"
#include "migrate/direct.h"
#include "migrate/message.pb.h"

namespace ferry::migrate {
namespace {

// The source gives up earlier, and says so.
constexpr std::chrono::seconds kConnectLimit(20);

}  // namespace

Result<void> StreamsIn::open(const wire::Streams& wanted) {
  wire::Message message;
  wire::Listening& answer = *message.mutable_listening();
  if (!links_.empty() || wanted.count() < 1 || wanted.count() > kMostStreams || wanted.port() > 65535) {
    return fail(Kind::corrupt, "{} asks for direct connections that cannot be", control_.peer());
  }
  const std::string address = wanted.address().empty() ? reached_address(::getenv("SSH_CONNECTION")) : wanted.address();
  if (address.empty()) {
    answer.set_reason("the remote shell does not say by which address this host was reached");
    return control_.send(message);
  }
  auto listener = DirectListener::open(address, static_cast<std::uint16_t>(wanted.port()));
  if (!listener) {
    answer.set_reason(listener.error().message());
    return control_.send(message);
  }
  answer.set_address(address);
  answer.set_port(listener->port());
  answer.set_key(listener->key().encode());
  FERRY_CHECK(control_.send(message));
  FERRY_TRY(links_, listener->accept(wanted.count(), control_.descriptor(), kConnectLimit, control_.peer()));
  wire::Message said;
  FERRY_CHECK(control_.receive(said, kConnectLimit));
  if (!said.has_connected() || (said.connected().count() != 0 && said.connected().count() != links_.size())) {
    return fail(Kind::corrupt, "{} counts other direct connections than have come", control_.peer());
  }
  if (said.connected().count() == 0) {
    links_.clear();
  }
  log::debug("{} direct connections at {} port {}", links_.size(), address, listener->port());
  return {};
}

Result<void> StreamsIn::begin_pages(TakePages take) {
  if (!links_.empty()) {
    FERRY_TRY(intake_, PageIntake::start(links_, std::move(take)));
    control_.interrupt_by(intake_->failed());
  }
  return {};
}

Result<void> StreamsIn::end_pages(std::uint64_t mark) {
  if (intake_ == nullptr) {
    return {};
  }
  FERRY_CHECK(intake_->finish(mark));
  control_.no_interrupts();
  intake_.reset();
  return {};
}

Error StreamsIn::break_off(Error error) {
  if (intake_ == nullptr) {
    return error;
  }
  auto failure = intake_->failure();
  intake_.reset();
  control_.no_interrupts();
  return failure ? std::move(error) : std::move(failure).error();
}

}  // namespace ferry::migrate

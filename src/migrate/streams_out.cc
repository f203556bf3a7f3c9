#include "migrate/streams_out.h"

#include <numeric>

#include "migrate/direct.h"
#include "migrate/message.pb.h"

namespace ferry::migrate {
namespace {

constexpr std::chrono::seconds kAnswerLimit(20);
// Behind a firewall nothing answers: nobody is to wait for long.
constexpr std::chrono::seconds kConnectLimit(3);

}  // namespace

StreamsOut::StreamsOut(Link& control, const StreamOptions& options) : control_(control), options_(options) {
  if (options_.bandwidth != 0) {
    pace_ = std::make_shared<Pace>(options_.bandwidth);
    control_.slow_to(pace_);
  }
}

Result<std::string> StreamsOut::open() {
  if (options_.tunnel) {
    return std::string();
  }
  wire::Message question;
  question.mutable_streams()->set_count(options_.count);
  question.mutable_streams()->set_address(options_.address);
  question.mutable_streams()->set_port(options_.port);
  FERRY_CHECK(control_.send(question));
  wire::Message message;
  FERRY_CHECK(control_.receive(message, kAnswerLimit));
  if (!message.has_listening()) {
    return fail(Kind::corrupt, "{} does not say where it listens", control_.peer());
  }
  const wire::Listening& answer = message.listening();
  if (!answer.reason().empty()) {
    return fmt::format("all data goes through the remote shell: {}", answer.reason());
  }
  const auto connect = [&]() -> Result<std::vector<Link>> {
    FERRY_TRY(const OneTimeKey key, OneTimeKey::decode(answer.key()));
    if (answer.port() < 1 || answer.port() > 65535) {
      return fail(Kind::corrupt, "{} listens on port {}", control_.peer(), answer.port());
    }
    return connect_directly(answer.address(), static_cast<std::uint16_t>(answer.port()), key, options_.count,
                            kConnectLimit, control_.interrupt(), control_.peer());
  };
  auto connected = connect();
  if (!connected && (connected.error().kind == Kind::corrupt || connected.error().kind == Kind::invalid)) {
    return tl::unexpected<Error>(std::move(connected).error());
  }
  std::string why;
  if (connected) {
    direct_ = std::move(*connected);
    for (Link& link : direct_) {
      link.slow_to(pace_);
    }
  } else {
    why = fmt::format("all data goes through the remote shell: {}", connected.error().message());
  }
  wire::Message said;
  said.mutable_connected()->set_count(static_cast<std::uint32_t>(direct_.size()));
  FERRY_CHECK(control_.send(said));
  return why;
}

void StreamsOut::hurry() {
  if (pace_ != nullptr) {
    pace_->lift();
  }
  if (pages_ != nullptr) {
    pages_->hurry();
  }
}

std::uint64_t StreamsOut::sent() const {
  return std::accumulate(direct_.begin(), direct_.end(), control_.sent(),
                         [](std::uint64_t sum, const Link& link) { return sum + link.sent(); });
}

}  // namespace ferry::migrate

#include "migrate/link.h"

#include <poll.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "migrate/message.pb.h"

namespace ferry::migrate {
namespace {

struct Head {
  std::uint32_t kind = 0;
  std::uint32_t zero = 0;
  std::uint64_t length = 0;
};
static_assert(sizeof(Head) == 16);

constexpr std::uint64_t kControlLimit = 64ULL << 20;  // an Offer holds Docker's descriptions
constexpr std::uint64_t kBulkLimit = 16ULL << 20;
constexpr std::size_t kPiece = 1U << 20;
// No sender pauses within a stream for longer, however slow the line.
constexpr std::chrono::milliseconds kSilence = std::chrono::seconds(120);

std::uint64_t limit_of(FrameKind kind) {
  switch (kind) {
    case FrameKind::control:
      return kControlLimit;
    case FrameKind::bulk:
      return kBulkLimit;
    case FrameKind::pages:
      return kBulkLimit;
  }
  return 0;
}

Result<Link::Frame> parse_head(const Head& head, const std::string& peer) {
  const auto kind = static_cast<FrameKind>(head.kind);
  if (head.kind < 1 || head.kind > 3 || head.zero != 0) {
    return fail(Kind::corrupt, "{} does not speak ferry's protocol (is something printed by its login files?)", peer);
  }
  if (head.length > limit_of(kind)) {
    return fail(Kind::corrupt, "{} announces a message of {} bytes, which is too long", peer, head.length);
  }
  return Link::Frame{.kind = kind, .length = head.length};
}

}  // namespace

Result<void> Link::check_interrupt() const {
  pollfd wanted{.fd = interrupt_, .events = POLLIN, .revents = 0};
  if (interrupt_ >= 0 && ::poll(&wanted, 1, 0) > 0) {
    return fail(Kind::invalid, "interrupted");
  }
  return {};
}

Error Link::named(Error error) const {
  error.what = fmt::format("{}: {}", peer_, error.what);
  return error;
}

Result<void> Link::wait(Transport::Wait wanted, std::chrono::milliseconds silence) const {
  using Clock = std::chrono::steady_clock;
  const auto deadline = Clock::now() + silence;
  for (;;) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
    if (left <= 0) {
      return fail(Kind::gone, "{} has been silent for {} s", peer_,
                  std::chrono::duration_cast<std::chrono::seconds>(silence).count());
    }
    std::array<pollfd, 3> fds{pollfd{.fd = wanted.fd, .events = wanted.events, .revents = 0},
                              pollfd{.fd = interrupt_, .events = POLLIN, .revents = 0},
                              pollfd{.fd = end_, .events = POLLIN, .revents = 0}};
    const int ready = ::poll(fds.data(), fds.size(), static_cast<int>(std::min<long long>(left, 1 << 30)));
    if (ready < 0 && errno != EINTR) {
      return sys_fail("poll(connection)");
    }
    if (ready > 0 && fds[1].revents != 0) {
      return fail(Kind::invalid, "interrupted");
    }
    if (ready > 0 && fds[2].revents != 0) {
      return fail(Kind::gone, "{}", end_sentence_);
    }
    if (ready > 0) {
      return {};
    }
  }
}

Result<void> Link::rest_until(std::chrono::steady_clock::time_point end) const {
  for (;;) {
    const auto left = end - std::chrono::steady_clock::now();
    if (left <= left.zero()) {
      return {};
    }
    const auto ns = std::chrono::duration_cast<std::chrono::nanoseconds>(left).count();
    const timespec limit{.tv_sec = ns / 1'000'000'000, .tv_nsec = ns % 1'000'000'000};
    pollfd wanted{.fd = interrupt_, .events = POLLIN, .revents = 0};
    if (::ppoll(&wanted, 1, &limit, nullptr) > 0) {
      return fail(Kind::invalid, "interrupted");
    }
  }
}

Result<void> Link::send_frame(FrameKind kind, std::span<const std::byte> head, std::span<const std::byte> body) {
  Head frame{.kind = static_cast<std::uint32_t>(kind), .zero = 0, .length = head.size() + body.size()};
  std::array<iovec, 3> parts{iovec{&frame, sizeof frame}, iovec{const_cast<std::byte*>(head.data()), head.size()},
                             iovec{const_cast<std::byte*>(body.data()), body.size()}};
  std::size_t left = sizeof frame + head.size() + body.size();
  if (pace_ != nullptr) {
    FERRY_CHECK(rest_until(pace_->book(Pace::Clock::now(), left)));
  }
  sent_ += left;
  std::size_t at = 0;
  while (left > 0) {
    auto written = transport_->write(std::span(parts).subspan(at));
    if (!written) {
      return tl::unexpected<Error>(named(std::move(written).error()));
    }
    if (*written == 0) {
      FERRY_CHECK(wait(transport_->to_write(), silence_));
      continue;
    }
    std::size_t done = *written;
    left -= done;
    while (at < parts.size() && done >= parts[at].iov_len) {
      done -= parts[at++].iov_len;
    }
    if (at < parts.size()) {
      parts[at].iov_base = static_cast<std::byte*>(parts[at].iov_base) + done;
      parts[at].iov_len -= done;
    }
  }
  return {};
}

Result<void> Link::send(const wire::Message& message) {
  const std::string bytes = message.SerializeAsString();
  return send_frame(FrameKind::control, {}, std::as_bytes(std::span(bytes)));
}

Result<void> Link::send_bulk(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const auto piece = bytes.first(std::min(bytes.size(), kPiece));
    FERRY_CHECK(send_frame(FrameKind::bulk, {}, piece));
    bytes = bytes.subspan(piece.size());
  }
  return {};
}

Result<std::uint64_t> Link::send_stream(int fd) {
  std::vector<std::byte> buffer(256 << 10);
  std::uint64_t total = 0;
  for (;;) {
    const ssize_t got = ::read(fd, buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) {
      continue;
    }
    if (got < 0) {
      return sys_fail("read(stream)");
    }
    if (got == 0) {
      break;
    }
    FERRY_CHECK(send_bulk(std::span(buffer).first(static_cast<std::size_t>(got))));
    total += static_cast<std::uint64_t>(got);
  }
  FERRY_CHECK(end_bulk());
  return total;
}

Result<void> Link::receive_bytes(void* bytes, std::size_t size) {
  auto* at = static_cast<char*>(bytes);
  bool wait_first = !transport_->pending();
  while (size > 0) {
    if (wait_first) {
      FERRY_CHECK(wait(transport_->to_read(), kSilence));
    }
    auto got = transport_->read(at, size);
    if (!got) {
      return tl::unexpected<Error>(named(std::move(got).error()));
    }
    // What is pending may be a part of a record, with which nobody can begin anything.
    wait_first = *got == 0 || !transport_->pending();
    at += *got;
    size -= *got;
  }
  return {};
}

Result<Link::Frame> Link::receive_head(std::chrono::milliseconds silence) {
  if (!transport_->pending()) {
    FERRY_CHECK(wait(transport_->to_read(), silence));
  }
  Head head;
  FERRY_CHECK(receive_bytes(&head, sizeof head));
  return parse_head(head, peer_);
}

// Whether so many bytes of the frame are here.
Result<bool> Link::gather(std::size_t wanted) {
  if (gathered_.size() < wanted) {
    gathered_.resize(wanted);
  }
  while (have_ < wanted) {
    if (!transport_->pending()) {
      const Transport::Wait readable = transport_->to_read();
      pollfd now{.fd = readable.fd, .events = readable.events, .revents = 0};
      if (::poll(&now, 1, 0) <= 0) {
        return false;
      }
    }
    auto got = transport_->read(gathered_.data() + have_, wanted - have_);
    if (!got) {
      return tl::unexpected<Error>(named(std::move(got).error()));
    }
    if (*got == 0) {
      starved_ = true;
      return false;
    }
    have_ += *got;
  }
  return true;
}

Result<std::optional<Link::Frame>> Link::poll_frame(std::vector<std::byte>& body) {
  starved_ = false;
  Head head;
  FERRY_TRY(const bool has_head, gather(sizeof head));
  if (!has_head) {
    return std::optional<Frame>();
  }
  std::memcpy(&head, gathered_.data(), sizeof head);
  FERRY_TRY(const Frame frame, parse_head(head, peer_));
  FERRY_TRY(const bool complete, gather(sizeof head + frame.length));
  if (!complete) {
    return std::optional<Frame>();
  }
  body.assign(gathered_.begin() + sizeof head, gathered_.begin() + static_cast<std::ptrdiff_t>(have_));
  have_ = 0;
  return std::optional(frame);
}

Result<void> Link::receive_control(const Frame& frame, wire::Message& message) {
  std::vector<std::byte> bytes(frame.length);
  FERRY_CHECK(receive_bytes(bytes.data(), bytes.size()));
  return parse_control(bytes, message);
}

Result<void> Link::parse_control(std::span<const std::byte> body, wire::Message& message) const {
  if (!message.ParseFromArray(body.data(), static_cast<int>(body.size()))) {
    return fail(Kind::corrupt, "a message from {} cannot be understood", peer_);
  }
  if (message.kind_case() == wire::Message::KIND_NOT_SET) {
    return fail(Kind::unsupported,
                "{} sent a message that this ferry does not know: use the same version on both hosts", peer_);
  }
  if (message.has_failure()) {
    return fail(Kind::os, "{}: {}", peer_, message.failure().reason());
  }
  return {};
}

Result<void> Link::receive(wire::Message& message, std::chrono::milliseconds silence) {
  FERRY_TRY(const Frame frame, receive_head(silence));
  if (frame.kind != FrameKind::control) {
    return fail(Kind::corrupt, "{} sent data where a message was expected", peer_);
  }
  return receive_control(frame, message);
}

Result<std::uint64_t> Link::receive_stream(const std::function<Result<void>(std::span<const std::byte>)>& sink) {
  std::vector<std::byte> buffer;
  std::uint64_t total = 0;
  for (;;) {
    FERRY_TRY(const Frame frame, receive_head(kSilence));
    if (frame.kind == FrameKind::control) {
      wire::Message message;
      FERRY_CHECK(receive_control(frame, message));
      return fail(Kind::corrupt, "{} broke a stream off", peer_);
    }
    if (frame.kind != FrameKind::bulk) {
      return fail(Kind::corrupt, "{} sent pages in the middle of a stream", peer_);
    }
    if (frame.length == 0) {
      return total;
    }
    buffer.resize(frame.length);
    FERRY_CHECK(receive_bytes(buffer.data(), buffer.size()));
    FERRY_CHECK(sink(buffer));
    total += frame.length;
  }
}

Result<std::string> Link::receive_text(std::uint64_t limit) {
  std::string out;
  const auto sink = [&](std::span<const std::byte> bytes) -> Result<void> {
    if (out.size() + bytes.size() > limit) {
      return fail(Kind::corrupt, "{} sends more than {} bytes of description", peer_, limit);
    }
    out.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    return {};
  };
  FERRY_CHECK(receive_stream(sink));
  return out;
}

}  // namespace ferry::migrate

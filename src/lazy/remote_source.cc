#include "lazy/remote_source.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "image/page_store.h"
#include "sys/file.h"

namespace ferry::lazy {
namespace {

constexpr std::size_t kBuffer = 256U << 10;

}  // namespace

Result<std::unique_ptr<RemoteSource>> RemoteSource::connect(PageServerPlace place) {
  auto out = std::unique_ptr<RemoteSource>(new RemoteSource());
  out->place_ = std::move(place);
  out->buffer_.resize(kBuffer);
  FERRY_TRY(out->socket_, connect_to(out->place_));
  return out;
}

Result<void> RemoteSource::recover() {
  socket_.reset();
  asked_.clear();
  have_header_ = 0;
  body_left_ = 0;
  have_body_ = 0;
  handed_out_ = false;
  if (place_.socket >= 0) {
    return fail(Kind::gone, "the connection was given to us, and nobody can make it anew");
  }
  FERRY_TRY(socket_, connect_to(place_));
  return {};
}

Result<void> RemoteSource::ask(const Range& range) {
  Command get = command(Verb::get, static_cast<std::uint64_t>(range.pid.value));
  get.vaddr = range.start;
  get.pages = (range.end - range.start) / image::kPageSize;
  FERRY_CHECK(send(socket_.get(), get));
  asked_.push_back(range);
  return {};
}

// 0: nothing is here now.
Result<std::size_t> RemoteSource::read_some(std::byte* into, std::size_t size) {
  for (;;) {
    const ssize_t n = ::recv(socket_.get(), into, size, MSG_DONTWAIT);
    if (n > 0) {
      return static_cast<std::size_t>(n);
    }
    if (n == 0) {
      return fail(Kind::gone, "the page server closed the connection");
    }
    if (errno == EAGAIN || errno == EWOULDBLOCK) {
      return std::size_t{0};
    }
    if (errno != EINTR) {
      return sys_fail("recv(page server connection)");
    }
  }
}

// Whether a whole header is here, and the answer fits its question.
Result<bool> RemoteSource::read_header() {
  while (have_header_ < header_.size()) {
    FERRY_TRY(const std::size_t n, read_some(header_.data() + have_header_, header_.size() - have_header_));
    if (n == 0) {
      return false;
    }
    have_header_ += n;
  }
  have_header_ = 0;
  const Command answer = decode(header_);
  if (asked_.empty()) {
    return fail(Kind::corrupt, "the page server answers (command {:#x}) what nobody asked", answer.verb);
  }
  Range& range = asked_.front();
  const std::uint64_t wanted = (range.end - range.start) / image::kPageSize;
  if (answer.verb != static_cast<std::uint16_t>(Verb::add_f) || answer.vaddr != range.start ||
      answer.destination != static_cast<std::uint64_t>(range.pid.value) || answer.pages > wanted) {
    return fail(Kind::corrupt,
                "the page server was asked for {} pages at {:#x} of process {} and answers with {} at {:#x} of {}",
                wanted, range.start, range.pid, answer.pages, answer.vaddr, answer.destination);
  }
  if ((answer.flags & image::kPresent) == 0 || answer.pages == 0) {
    return fail(Kind::corrupt, "the page server does not have page {:#x} of process {}", range.start, range.pid);
  }
  body_of_ = range.pid;
  body_at_ = range.start;
  body_left_ = answer.pages * image::kPageSize;
  range.start += body_left_;
  const Range rest = range;
  asked_.pop_front();
  if (rest.start < rest.end) {
    FERRY_CHECK(ask(rest));  // it may answer with less than it was asked for
  }
  return true;
}

Result<std::optional<PageSource::Piece>> RemoteSource::take() {
  if (handed_out_) {
    const std::size_t whole = have_body_ / image::kPageSize * image::kPageSize;
    std::memmove(buffer_.data(), buffer_.data() + whole, have_body_ - whole);
    have_body_ -= whole;
    handed_out_ = false;
  }
  if (body_left_ == 0) {
    FERRY_TRY(const bool here, read_header());
    if (!here) {
      return std::optional<Piece>();
    }
  }
  while (have_body_ < std::min<std::uint64_t>(buffer_.size(), body_left_)) {
    const auto room = static_cast<std::size_t>(std::min<std::uint64_t>(buffer_.size(), body_left_) - have_body_);
    FERRY_TRY(const std::size_t n, read_some(buffer_.data() + have_body_, room));
    if (n == 0) {
      break;
    }
    have_body_ += n;
  }
  const std::size_t whole = have_body_ / image::kPageSize * image::kPageSize;
  if (whole == 0) {
    return std::optional<Piece>();
  }
  const Piece piece{body_of_, body_at_, std::span<const std::byte>(buffer_).first(whole)};
  body_at_ += whole;
  body_left_ -= whole;
  handed_out_ = true;
  return std::optional(piece);
}

Result<void> RemoteSource::finish() {
  FERRY_CHECK(send(socket_.get(), command(place_.socket >= 0 ? Verb::force_close : Verb::close)));
  std::int32_t status = 0;
  return sys::read_exactly(socket_.get(), &status, sizeof status, "the page server's last answer");
}

}  // namespace ferry::lazy

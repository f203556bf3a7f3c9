// A connection between the two sides of a move: frames over a Transport.
//
// A frame is a kind (u32), a zero (u32), a length (u64), all little-endian, and as many bytes.
//   control  one wire::Message
//   bulk     a piece of the stream that the last control message announced; an empty one ends it
//   pages    a batch of pages (page_batch.h)
// Every length is checked against the limit of its kind before anything is read.
//
// Errors of all calls: gone, if the other side went away or kept silent too long; its own sentence, if
// it sent a Failure; corrupt; invalid, if the user interrupted us.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"
#include "migrate/pace.h"
#include "migrate/transport.h"

namespace ferry::migrate {

namespace wire {
class Message;
}

enum class FrameKind : std::uint32_t { control = 1, bulk = 2, pages = 3 };

class Link {
 public:
  // Takes the descriptors over.  `interrupt` becomes readable when the user wants to stop (a
  // signalfd(2)), -1 for none; it is not read and not owned.
  Link(UniqueFd in, UniqueFd out, int interrupt, std::string peer)
      : Link(std::make_unique<FdTransport>(std::move(in), std::move(out)), interrupt, std::move(peer)) {}
  Link(std::unique_ptr<Transport> transport, int interrupt, std::string peer)
      : transport_(std::move(transport)), interrupt_(interrupt), peer_(std::move(peer)) {}
  Link(Link&&) = default;
  Link& operator=(Link&&) = default;

  Result<void> send(const wire::Message& message);
  Result<void> send_frame(FrameKind kind, std::span<const std::byte> head, std::span<const std::byte> body);
  // One piece of a stream after the other.
  Result<void> send_bulk(std::span<const std::byte> bytes);
  Result<void> end_bulk() { return send_frame(FrameKind::bulk, {}, {}); }
  // All that comes out of `fd`, as one stream.  The value is the number of bytes.
  Result<std::uint64_t> send_stream(int fd);

  // The next control message; a Failure is returned as an error.
  Result<void> receive(wire::Message& message, std::chrono::milliseconds silence);
  struct Frame {
    FrameKind kind{};
    std::uint64_t length = 0;
  };
  Result<Frame> receive_head(std::chrono::milliseconds silence);
  Result<void> receive_bytes(void* bytes, std::size_t size);
  // The next frame with its body, if all of it is here; it never waits.  What has come of one is kept for the next
  // call, so whoever begins with this receives in no other way.
  Result<std::optional<Frame>> poll_frame(std::vector<std::byte>& body);
  // Whether poll_frame() may have something that the descriptor does not tell of.
  [[nodiscard]] bool pending() const { return !starved_ && transport_->pending(); }
  // The body of a control frame whose head was read.
  Result<void> receive_control(const Frame& frame, wire::Message& message);
  // The same with the body at hand.
  Result<void> parse_control(std::span<const std::byte> body, wire::Message& message) const;
  // A stream up to its end; `sink` gets the pieces.
  Result<std::uint64_t> receive_stream(const std::function<Result<void>(std::span<const std::byte>)>& sink);
  Result<std::string> receive_text(std::uint64_t limit);

  // What is sent from now on leaves no faster than this.
  void slow_to(std::shared_ptr<Pace> pace) { pace_ = std::move(pace); }
  // How long the other side may take nothing of what is sent; two minutes, if nothing else is said.
  void give_up_after(std::chrono::milliseconds silence) { silence_ = silence; }
  // From now on the user can no longer interrupt.
  void no_interrupts() { interrupt_ = -1; }
  void interrupt_by(int fd) { interrupt_ = fd; }
  // Waiting ends with this sentence (gone) once the descriptor is readable; -1 for none.
  void end_with(int fd, std::string sentence) {
    end_ = fd;
    end_sentence_ = std::move(sentence);
  }
  [[nodiscard]] int interrupt() const { return interrupt_; }
  [[nodiscard]] Result<void> check_interrupt() const;
  [[nodiscard]] const std::string& peer() const { return peer_; }
  [[nodiscard]] std::uint64_t sent() const { return sent_; }
  void close() { transport_->hang_up(); }
  // Readable when there is something to receive.
  [[nodiscard]] int descriptor() const { return transport_->to_read().fd; }
  [[nodiscard]] int writing_descriptor() const { return transport_->to_write().fd; }

 private:
  Result<void> wait(Transport::Wait wanted, std::chrono::milliseconds silence) const;
  Result<bool> gather(std::size_t wanted);
  Result<void> rest_until(std::chrono::steady_clock::time_point end) const;
  [[nodiscard]] Error named(Error error) const;

  std::unique_ptr<Transport> transport_;
  std::shared_ptr<Pace> pace_;
  std::chrono::milliseconds silence_ = std::chrono::minutes(2);
  int interrupt_ = -1;
  int end_ = -1;
  std::string end_sentence_;
  std::string peer_;                 // "host h2", for sentences
  std::uint64_t sent_ = 0;           // bytes
  std::vector<std::byte> gathered_;  // of the frame that poll_frame() is about
  std::size_t have_ = 0;
  bool starved_ = false;  // what is pending is less than a record
};

}  // namespace ferry::migrate

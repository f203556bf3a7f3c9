// The connection between the two sides of a move: frames over a pair of descriptors.
//
// A frame is a kind (u32), a zero (u32), a length (u64), all little-endian, and as many bytes.
//   control  one wire::Message
//   bulk     a piece of the stream that the last control message announced; an empty one ends it
//   pages    a PageHead, then the content of whole pages
//   zeros    a PageHead: pages that hold nothing but zeros
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
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"

namespace ferry::migrate {

namespace wire {
class Message;
}

enum class FrameKind : std::uint32_t { control = 1, bulk = 2, pages = 3, zeros = 4 };

struct PageHead {
  std::uint32_t image_type = 0;  // image::Type of the pagemap
  std::uint32_t reserved = 0;
  std::uint64_t image_id = 0;
  std::uint64_t vaddr = 0;
  std::uint64_t pages = 0;
};
static_assert(sizeof(PageHead) == 32);

class Link {
 public:
  // Takes the descriptors over.  `interrupt` becomes readable when the user wants to stop (a
  // signalfd(2)), -1 for none; it is not read and not owned.
  Link(UniqueFd in, UniqueFd out, int interrupt, std::string peer)
      : in_(std::move(in)), out_(std::move(out)), interrupt_(interrupt), peer_(std::move(peer)) {}
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
  // The body of a control frame whose head was read.
  Result<void> receive_control(const Frame& frame, wire::Message& message);
  // A stream up to its end; `sink` gets the pieces.
  Result<std::uint64_t> receive_stream(const std::function<Result<void>(std::span<const std::byte>)>& sink);
  Result<std::string> receive_text(std::uint64_t limit);

  // From now on the user can no longer interrupt.
  void no_interrupts() { interrupt_ = -1; }
  [[nodiscard]] Result<void> check_interrupt() const;
  [[nodiscard]] const std::string& peer() const { return peer_; }
  [[nodiscard]] std::uint64_t sent() const { return sent_; }
  void close() {
    in_.reset();
    out_.reset();
  }

 private:
  Result<void> wait(int fd, short events, std::chrono::milliseconds silence) const;

  UniqueFd in_;
  UniqueFd out_;
  int interrupt_ = -1;
  std::string peer_;         // "host h2", for sentences
  std::uint64_t sent_ = 0;   // bytes
};

}  // namespace ferry::migrate

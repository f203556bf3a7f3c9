// The page protocol: what a page server and its clients say to each other.
//
// A conversation is a row of commands, each a header and, for some, pages behind it; numbers stand as x86-64 has
// them.  It is CRIU's since 4.2 (docs/criu.md, "Page server"); until 4.1 the header had 24 bytes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "base/error.h"
#include "base/ids.h"
#include "image/set.h"

namespace ferry::lazy {

enum class Verb : std::uint16_t {
  add = 1,     // pages follow; of old senders
  hole = 2,    // the parent has them; of old senders
  open = 3,    // no answer; of old senders
  open2 = 4,   // answer: one byte, whether the server has a parent set for this destination
  parent = 5,  // answer: four bytes, the same
  add_f = 6,   // with page flags; pages follow if they say kPresent.  Also the answer to get
  get = 7,
  close = 0x1023,        // answer: four bytes of zero once everything is in its files
  force_close = 0x1024,  // the same, by a sender whose connection somebody else made
};

struct Command {
  std::uint16_t verb = 0;
  std::uint16_t flags = 0;  // image::PageFlags
  std::uint64_t pages = 0;
  std::uint64_t vaddr = 0;
  std::uint64_t destination = 0;
  bool operator==(const Command&) const = default;
};
inline constexpr std::size_t kHeaderSize = 32;
std::array<std::byte, kHeaderSize> encode(const Command& command);
Command decode(std::span<const std::byte, kHeaderSize> bytes);
inline Command command(Verb verb, std::uint64_t destination = 0) {
  return {static_cast<std::uint16_t>(verb), 0, 0, 0, destination};
}

// More than this in one command is no honest sender's.
inline constexpr std::uint64_t kMaxPages = 1ULL << 28;  // 1 TiB

// Which pagemap a destination means, and back.  `id_of` knows those of old senders too; nullopt: none.
std::uint64_t destination_of(image::Name pagemap);
std::optional<image::Name> pagemap_of(std::uint64_t destination);

// Blocking conversation over a socket that is not owned.
Result<void> send(int socket, const Command& command);
Result<void> send(int socket, const Command& command, std::span<const std::byte> data);
// nullopt: the peer closed the connection between two commands.  Errors: corrupt (it ended within one), os.
Result<std::optional<Command>> receive(int socket);

}  // namespace ferry::lazy

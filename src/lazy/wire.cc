#include "lazy/wire.h"

#include <sys/socket.h>
#include <sys/uio.h>

#include <cerrno>
#include <cstring>

#include "sys/file.h"

namespace ferry::lazy {
namespace {

constexpr std::uint64_t kOfProcess = 1;  // low byte of a destination
constexpr std::uint64_t kOfSegment = 2;

template <class T>
void put(std::array<std::byte, kHeaderSize>& out, std::size_t at, T value) {
  std::memcpy(out.data() + at, &value, sizeof value);
}
template <class T>
T get(std::span<const std::byte, kHeaderSize> in, std::size_t at) {
  T value{};
  std::memcpy(&value, in.data() + at, sizeof value);
  return value;
}

Result<void> send_all(int socket, iovec* parts, std::size_t count) {
  while (count != 0) {
    msghdr message{};
    message.msg_iov = parts;
    message.msg_iovlen = count;
    ssize_t n = ::sendmsg(socket, &message, MSG_NOSIGNAL);
    if (n < 0) {
      if (errno == EINTR) {
        continue;
      }
      return sys_fail("sendmsg(page server connection)");
    }
    while (count != 0 && static_cast<std::size_t>(n) >= parts->iov_len) {
      n -= static_cast<ssize_t>(parts->iov_len);
      ++parts;
      --count;
    }
    if (count != 0) {
      parts->iov_base = static_cast<std::byte*>(parts->iov_base) + n;
      parts->iov_len -= static_cast<std::size_t>(n);
    }
  }
  return {};
}

}  // namespace

std::array<std::byte, kHeaderSize> encode(const Command& command) {
  std::array<std::byte, kHeaderSize> out{};
  put(out, 0, std::uint32_t{command.flags} << 16 | command.verb);
  put(out, 8, command.pages);
  put(out, 16, command.vaddr);
  put(out, 24, command.destination);
  return out;
}

Command decode(std::span<const std::byte, kHeaderSize> bytes) {
  const auto word = get<std::uint32_t>(bytes, 0);
  return {static_cast<std::uint16_t>(word & 0xffff), static_cast<std::uint16_t>(word >> 16),
          get<std::uint64_t>(bytes, 8), get<std::uint64_t>(bytes, 16), get<std::uint64_t>(bytes, 24)};
}

std::uint64_t destination_of(image::Name pagemap) {
  return pagemap.id << 8 | (pagemap.type == image::Type::pagemap ? kOfProcess : kOfSegment);
}

std::optional<image::Name> pagemap_of(std::uint64_t destination) {
  const std::uint64_t id = destination >> 8;
  switch (destination & 0xff) {
    case kOfProcess:
    case 10:
    case 11:
    case 16:
    case 17:
      return image::Name{image::Type::pagemap, id};
    case kOfSegment:
    case 27:
    case 28:
    case 29:
    case 32:
    case 33:
    case 34:
      return image::Name{image::Type::pagemap_shmem, id};
    default:
      return std::nullopt;
  }
}

Result<void> send(int socket, const Command& command) { return send(socket, command, {}); }

Result<void> send(int socket, const Command& command, std::span<const std::byte> data) {
  auto header = encode(command);
  iovec parts[] = {{header.data(), header.size()}, {const_cast<std::byte*>(data.data()), data.size()}};
  return send_all(socket, parts, data.empty() ? 1 : 2);
}

Result<std::optional<Command>> receive(int socket) {
  std::array<std::byte, kHeaderSize> header{};
  ssize_t n = 0;
  do {
    n = ::recv(socket, header.data(), header.size(), 0);
  } while (n < 0 && errno == EINTR);
  if (n < 0) {
    return sys_fail("recv(page server connection)");
  }
  if (n == 0) {
    return std::optional<Command>();
  }
  const auto have = static_cast<std::size_t>(n);
  FERRY_CHECK(sys::read_exactly(socket, header.data() + have, header.size() - have, "a page server connection"));
  return decode(header);
}

}  // namespace ferry::lazy

// Hostile frames from the other host, and hostile records: whatever they hold, they are read or refused.
//
// The first byte says which reader gets the rest.
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "migrate/link.h"
#include "migrate/message.pb.h"
#include "migrate/page_batch.h"
#include "migrate/record.h"

namespace {

using namespace ferry;
using namespace ferry::migrate;
using namespace std::chrono_literals;

constexpr std::uint64_t kTextLimit = 1 << 16;

// A file instead of a connection: what is missing is seen as the end at once.
UniqueFd input(const std::uint8_t* data, std::size_t size) {
  UniqueFd fd(::memfd_create("wire", MFD_CLOEXEC));
  if (!fd || ::write(fd.get(), data, size) != static_cast<ssize_t>(size) || ::lseek(fd.get(), 0, SEEK_SET) != 0) {
    return {};
  }
  return fd;
}

void read_frames(Link& link) {
  for (;;) {
    const auto frame = link.receive_head(0ms);
    if (!frame.has_value()) {
      return;
    }
    wire::Message message;
    if (frame->kind == FrameKind::control) {
      if (!link.receive_control(*frame, message).has_value()) {
        return;
      }
      continue;
    }
    if (frame->kind == FrameKind::pages) {
      BatchReader reader;
      if (!reader.receive(link, *frame,
                          [](image::Name, std::span<const ArrivedPages>) -> Result<void> { return {}; })) {
        return;
      }
      continue;
    }
    std::array<std::byte, 4096> page{};
    for (std::uint64_t left = frame->length; left > 0;) {
      const std::size_t take = left < page.size() ? static_cast<std::size_t>(left) : page.size();
      if (!link.receive_bytes(page.data(), take).has_value()) {
        return;
      }
      left -= take;
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) {
    return 0;
  }
  if (data[0] == 'r') {
    (void)decode_given(std::string(reinterpret_cast<const char*>(data) + 1, size - 1));
    return 0;
  }
  UniqueFd in = input(data + 1, size - 1);
  if (!in) {
    return 0;
  }
  Link link(std::move(in), UniqueFd(), -1, "the peer");
  switch (data[0]) {
    case 'm': {
      wire::Message message;
      while (link.receive(message, 0ms).has_value()) {
      }
      break;
    }
    case 's':
      (void)link.receive_stream([](std::span<const std::byte>) -> Result<void> { return {}; });
      break;
    case 't':
      (void)link.receive_text(kTextLimit);
      break;
    default:
      read_frames(link);
      break;
  }
  return 0;
}

#include "state/memory/device_writes.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>

#include "state/io_uring/io_uring.h"
#include "state/memory/pages.h"
#include "sys/file.h"
#include "sys/memory.h"

namespace ferry::state::memory {
namespace {

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kMaxVectors = 1024;  // IOV_MAX
constexpr std::size_t kMaxLooks = 16;

std::vector<sys::PageRange> all_private(const std::vector<sys::Mapping>& mappings) {
  std::vector<sys::PageRange> out;
  for (const sys::Mapping& m : mappings) {
    if (kept(m) == Kept::own_pages) {
      out.push_back({m.start, m.end});
    }
  }
  tidy(out);
  return out;
}

void add_buffer(std::uint64_t address, std::uint64_t length, std::vector<sys::PageRange>& out) {
  constexpr std::uint64_t kLongest = 0x7ffff000;  // read(2)
  const std::uint64_t end = address + std::min(length, kLongest);
  out.push_back({address / kPage * kPage, (end + kPage - 1) / kPage * kPage});
}

// What of a process's descriptors lets a device write into its memory.
struct Descriptors {
  bool direct = false;  // files with O_DIRECT
  bool ring = false;    // an io_uring, whose requests no thread waits for
  std::optional<std::vector<sys::PageRange>> of_rings = std::vector<sys::PageRange>();  // nullopt: cannot be told
};

Result<Descriptors> look_at_descriptors(int proc) {
  FERRY_TRY(const auto numbers, sys::numeric_entries(proc, "fd"));
  Descriptors out;
  for (const int fd : numbers) {
    // Of ten thousand connections only their links are read.
    const auto link = sys::read_link_at(proc, fmt::format("fd/{}", fd));
    const bool ring = link.has_value() && io_uring::is_ring(*link);
    if (!link.has_value() || (!ring && !link->starts_with("/"))) {
      continue;
    }
    const auto text = sys::read_file_at(proc, fmt::format("fdinfo/{}", fd));
    const auto info = text.has_value() ? sys::parse_fdinfo(*text) : Result<sys::FdInfo>();
    if (!info.has_value()) {
      continue;
    }
    if (ring) {
      out.ring = true;
      const auto buffers = buffers_of_ring(*info);
      if (buffers.has_value() && out.of_rings.has_value()) {
        out.of_rings->insert(out.of_rings->end(), buffers->begin(), buffers->end());
      } else {
        out.of_rings.reset();
      }
    } else if ((info->flags & O_DIRECT) != 0 && (info->flags & O_ACCMODE) != O_WRONLY) {
      out.direct = true;
    }
  }
  return out;
}

Result<void> add_buffers(HostPid pid, const ReadCall& call, std::vector<sys::PageRange>& out) {
  if (!call.vectors) {
    add_buffer(call.address, call.length, out);
    return {};
  }
  std::vector<iovec> vectors(static_cast<std::size_t>(std::min(call.length, kMaxVectors)));
  FERRY_CHECK(sys::read_memory(pid, call.address, std::as_writable_bytes(std::span(vectors))));
  for (const iovec& v : vectors) {
    add_buffer(reinterpret_cast<std::uint64_t>(v.iov_base), v.iov_len, out);
  }
  return {};
}

}  // namespace

// "UserBufs: 2", and then each with its slot: "    0: 0x7f5038ead000/4096" (io_uring/fdinfo.c).
std::optional<std::vector<sys::PageRange>> buffers_of_ring(const sys::FdInfo& info) {
  const auto& lines = info.rest;
  const auto first =
      std::find_if(lines.begin(), lines.end(), [](const auto& line) { return line.first == "UserBufs"; });
  // Not there while the kernel works on the ring.  A file that is registered may be one with O_DIRECT.
  if (first == lines.end() || info.get("UserFiles") != "0") {
    return std::nullopt;
  }
  std::vector<sys::PageRange> out;
  for (auto line = first + 1; line != lines.end() && line->first.starts_with(' '); ++line) {
    const std::string_view text = line->second;
    const std::size_t slash = text.find('/');
    if (text == "<none>") {
      continue;
    }
    const auto address =
        text.starts_with("0x") && slash != text.npos ? sys::parse_number(text.substr(2, slash - 2), 16) : std::nullopt;
    const auto size = address.has_value() ? sys::parse_number(text.substr(slash + 1)) : std::nullopt;
    if (!size.has_value()) {
      return std::nullopt;
    }
    add_buffer(*address, *size, out);
  }
  return out;
}

CallState parse_call(std::string_view text, ReadCall& out) {
  if (text.starts_with("running")) {
    return CallState::running;
  }
  std::array<std::uint64_t, 4> words{};  // number, then in hex: descriptor, address, length
  for (std::size_t i = 0; i < words.size(); ++i) {
    const std::size_t end = std::min(text.find_first_of(" \n"), text.size());
    std::string_view word = text.substr(0, end);
    const bool hex = word.starts_with("0x");
    const auto value = sys::parse_number(hex ? word.substr(2) : word, hex ? 16 : 10);
    if (!value.has_value()) {
      return CallState::other;  // "-1": in the kernel, but not in a call
    }
    words[i] = *value;
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  switch (words[0]) {
    case SYS_read:
    case SYS_pread64:
      out.vectors = false;
      break;
    case SYS_readv:
    case SYS_preadv:
    case SYS_preadv2:
      out.vectors = true;
      break;
    default:
      return CallState::other;
  }
  out.fd = static_cast<int>(words[1]);
  out.address = words[2];
  out.length = words[3];
  return CallState::reads;
}

Result<std::vector<sys::PageRange>> buffers_of_devices(HostPid pid, int proc,
                                                       const std::vector<sys::Mapping>& mappings) {
  for (const sys::Mapping& m : mappings) {
    if (m.name == "/[aio]") {
      return all_private(mappings);
    }
  }
  FERRY_TRY(const Descriptors descriptors, look_at_descriptors(proc));
  if (!descriptors.of_rings.has_value() || (descriptors.ring && descriptors.direct)) {
    return all_private(mappings);
  }
  std::vector<sys::PageRange> out = *descriptors.of_rings;
  if (!descriptors.direct) {
    tidy(out);
    return out;
  }
  FERRY_TRY(const auto tids, sys::numeric_entries(proc, "task"));
  for (const int tid : tids) {
    ReadCall call;
    auto state = CallState::running;
    // On the processor it may be in the middle of a call, or in the program; a while later it is known.
    for (std::size_t looks = 0; looks < kMaxLooks && state == CallState::running; ++looks) {
      const auto text = sys::read_file_at(proc, fmt::format("task/{}/syscall", tid));
      state = text.has_value() ? parse_call(*text, call) : CallState::other;
    }
    if (state == CallState::running) {
      return all_private(mappings);
    }
    if (state == CallState::reads && !add_buffers(pid, call, out).has_value()) {
      return all_private(mappings);
    }
  }
  tidy(out);
  return out;
}

}  // namespace ferry::state::memory

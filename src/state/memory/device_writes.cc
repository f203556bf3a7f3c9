#include "state/memory/device_writes.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include <array>

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

Result<bool> has_direct_files(int proc) {
  FERRY_TRY(const auto numbers, sys::numeric_entries(proc, "fd"));
  for (const int fd : numbers) {
    // Of ten thousand connections only their links are read.
    const auto link = sys::read_link_at(proc, fmt::format("fd/{}", fd));
    if (!link.has_value() || !link->starts_with("/")) {
      continue;
    }
    const auto text = sys::read_file_at(proc, fmt::format("fdinfo/{}", fd));
    const auto info = text.has_value() ? sys::parse_fdinfo(*text) : Result<sys::FdInfo>();
    if (info.has_value() && (info->flags & O_DIRECT) != 0 && (info->flags & O_ACCMODE) != O_WRONLY) {
      return true;
    }
  }
  return false;
}

void add_buffer(std::uint64_t address, std::uint64_t length, std::vector<sys::PageRange>& out) {
  constexpr std::uint64_t kLongest = 0x7ffff000;  // read(2)
  const std::uint64_t end = address + std::min(length, kLongest);
  out.push_back({address / kPage * kPage, (end + kPage - 1) / kPage * kPage});
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
  FERRY_TRY(const bool direct, has_direct_files(proc));
  std::vector<sys::PageRange> out;
  if (!direct) {
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

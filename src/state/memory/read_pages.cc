#include "state/memory/read_pages.h"

#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <future>

#include "sys/memory.h"

namespace ferry::state::memory {
namespace {

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kWorthAThread = 8U << 20;  // bytes
constexpr std::size_t kMaxRanges = 512;            // process_vm_readv(2) takes at most IOV_MAX (1024)
constexpr std::uint64_t kMaxBytes = 16U << 20;     // in one call, which cannot be interrupted

Result<void> read_some(DumpTask& task, std::span<const iovec> remote, Reading reading, std::span<std::byte> room) {
  if (reading == Reading::sharing) {
    for (const iovec& range : remote) {
      FERRY_CHECK(read_sharing(task.process.memory(), reinterpret_cast<std::uint64_t>(range.iov_base),
                               room.first(range.iov_len)));
      room = room.subspan(range.iov_len);
    }
    return {};
  }
  const iovec local{room.data(), room.size()};
  const ssize_t n = ::process_vm_readv(task.pid.value, &local, 1, remote.data(), remote.size(), 0);
  if (n == static_cast<ssize_t>(room.size())) {
    return {};
  }
  // A range that the program itself may not read (PROT_NONE): range by range, past its protection.
  for (const iovec& range : remote) {
    FERRY_CHECK(sys::read_memory(task.pid, reinterpret_cast<std::uint64_t>(range.iov_base), room.first(range.iov_len),
                                 task.process.memory()));
    room = room.subspan(range.iov_len);
  }
  return {};
}

Result<void> read_in_order(DumpTask& task, const std::vector<sys::PageRange>& ranges, Reading reading,
                           std::span<std::byte> room) {
  std::vector<iovec> remote;
  std::uint64_t noted = 0;
  const auto flush = [&]() -> Result<void> {
    FERRY_CHECK(read_some(task, remote, reading, room.first(noted)));
    room = room.subspan(noted);
    noted = 0;
    remote.clear();
    return {};
  };
  for (const sys::PageRange& range : ranges) {
    for (std::uint64_t at = range.start; at < range.end;) {
      const std::uint64_t take = std::min(range.end - at, kMaxBytes - noted);
      remote.push_back({reinterpret_cast<void*>(at), take});
      noted += take;
      at += take;
      if (noted == kMaxBytes || remote.size() == kMaxRanges) {
        FERRY_CHECK(flush());
      }
    }
  }
  return noted == 0 ? Result<void>() : flush();
}

}  // namespace

Result<void> read_sharing(int memory, std::uint64_t start, std::span<std::byte> into) {
  while (!into.empty()) {
    const ssize_t n = ::pread(memory, into.data(), into.size(), static_cast<off_t>(start));
    if (n < 0 && errno == EINTR) {
      continue;
    }
    if (n <= 0) {
      errno = n == 0 ? EFAULT : errno;
      return sys_fail(fmt::format("pread(/proc/PID/mem, {} bytes at {:#x})", into.size(), start));
    }
    start += static_cast<std::uint64_t>(n);
    into = into.subspan(static_cast<std::size_t>(n));
  }
  return {};
}

std::uint64_t read_sharing(int memory, std::span<const sys::PageRange> ranges, std::span<std::byte> into) {
  std::uint64_t done = 0;
  for (const sys::PageRange& range : ranges) {
    for (std::uint64_t at = range.start; at < range.end;) {
      const ssize_t n = ::pread(memory, into.data() + done, range.end - at, static_cast<off_t>(at));
      if (n < 0 && errno == EINTR) {
        continue;
      }
      if (n <= 0) {
        return done;
      }
      done += static_cast<std::uint64_t>(n);
      at += static_cast<std::uint64_t>(n);
    }
  }
  return done;
}

Result<void> read_pages(DumpTask& task, std::vector<sys::PageRange> ranges, Reading reading,
                        std::span<std::byte> room) {
  if (room.size() < kWorthAThread) {
    return read_in_order(task, ranges, reading, room);
  }
  std::vector<sys::PageRange> first;
  std::uint64_t left = room.size() / 2 / kPage * kPage;
  const std::uint64_t half = left;
  std::size_t i = 0;
  for (; i < ranges.size() && ranges[i].end - ranges[i].start <= left; ++i) {
    left -= ranges[i].end - ranges[i].start;
    first.push_back(ranges[i]);
  }
  if (left != 0) {
    first.push_back({ranges[i].start, ranges[i].start + left});
    ranges[i].start += left;
  }
  ranges.erase(ranges.begin(), ranges.begin() + static_cast<std::ptrdiff_t>(i));
  auto other = std::async(std::launch::async, [&] { return read_in_order(task, first, reading, room.first(half)); });
  auto mine = read_in_order(task, ranges, reading, room.subspan(half));
  FERRY_CHECK(other.get());
  return mine;
}

}  // namespace ferry::state::memory

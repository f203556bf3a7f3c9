#include "migrate/file_patch.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/zeros.h"

namespace ferry::migrate {
namespace {

constexpr std::uint32_t kContent = 0;
constexpr std::uint32_t kZeros = 1;
struct Head {
  std::uint64_t offset = 0;
  std::uint32_t length = 0;
  std::uint32_t kind = kContent;
};
static_assert(sizeof(Head) == 16);

BlockSum sum_of(std::span<const std::byte> block) {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits(block.data(), block.size()));
  BlockSum out;
  static_assert(sizeof canonical == sizeof out);
  std::memcpy(out.data(), &canonical, sizeof out);
  return out;
}

// Calls `see` with every block of a file, in order; one that lies in a hole is not read.
Result<std::uint64_t> each_block(
    int fd, std::string_view subject,
    const std::function<Result<void>(std::uint64_t offset, std::span<const std::byte>)>& see) {
  struct stat info {};
  if (::fstat(fd, &info) != 0) {
    return sys_fail(fmt::format("fstat({})", subject));
  }
  const auto size = static_cast<std::uint64_t>(info.st_size);
  std::vector<std::byte> buffer(kPatchBlock);
  const std::vector<std::byte> nothing(kPatchBlock);
  std::uint64_t data = 0;  // begin of the next part that is no hole
  for (std::uint64_t at = 0; at < size; at += kPatchBlock) {
    const auto length = static_cast<std::size_t>(std::min<std::uint64_t>(kPatchBlock, size - at));
    if (data <= at) {
      const off_t found = ::lseek(fd, static_cast<off_t>(at), SEEK_DATA);
      data = found < 0 ? (errno == ENXIO ? size : at) : static_cast<std::uint64_t>(found);
    }
    if (data >= at + length) {
      FERRY_CHECK(see(at, std::span(nothing).first(length)));
      continue;
    }
    std::size_t have = 0;
    while (have < length) {
      const ssize_t got = ::pread(fd, buffer.data() + have, length - have, static_cast<off_t>(at + have));
      if (got < 0 && errno == EINTR) {
        continue;
      }
      if (got < 0) {
        return sys_fail(fmt::format("pread({})", subject));
      }
      if (got == 0) {
        // It became shorter meanwhile; that will be told by whoever watches.
        std::fill(buffer.begin() + static_cast<std::ptrdiff_t>(have),
                  buffer.begin() + static_cast<std::ptrdiff_t>(length), std::byte{0});
        break;
      }
      have += static_cast<std::size_t>(got);
    }
    FERRY_CHECK(see(at, std::span(buffer).first(length)));
    data = std::min<std::uint64_t>(data, at);  // ask again: a hole may begin in this block
  }
  return size;
}

}  // namespace

Result<std::vector<BlockSum>> block_sums(int fd, std::string_view subject) {
  std::vector<BlockSum> out;
  FERRY_CHECK(each_block(fd, subject, [&](std::uint64_t, std::span<const std::byte> block) -> Result<void> {
    out.push_back(sum_of(block));
    return {};
  }));
  return out;
}

std::string encode_sums(const std::vector<BlockSum>& sums) {
  return {reinterpret_cast<const char*>(sums.data()), sums.size() * sizeof(BlockSum)};
}

Result<std::vector<BlockSum>> decode_sums(std::string_view bytes) {
  if (bytes.size() % sizeof(BlockSum) != 0) {
    return fail(Kind::corrupt, "the sums of a file are not what they have to be");
  }
  std::vector<BlockSum> out(bytes.size() / sizeof(BlockSum));
  std::memcpy(out.data(), bytes.data(), bytes.size());
  return out;
}

Result<std::uint64_t> make_patch(int fd, std::vector<BlockSum>& there, const PatchSink& sink,
                                 std::string_view subject) {
  std::vector<BlockSum> here;
  std::vector<std::byte> piece;
  FERRY_TRY(const std::uint64_t size,
            each_block(fd, subject, [&](std::uint64_t offset, std::span<const std::byte> block) -> Result<void> {
              here.push_back(sum_of(block));
              if (here.size() <= there.size() && there[here.size() - 1] == here.back()) {
                return {};
              }
              const bool empty = all_zeros(block);
              const Head head{offset, static_cast<std::uint32_t>(block.size()), empty ? kZeros : kContent};
              piece.resize(sizeof head + (empty ? 0 : block.size()));
              std::memcpy(piece.data(), &head, sizeof head);
              if (!empty) {
                std::memcpy(piece.data() + sizeof head, block.data(), block.size());
              }
              return sink(piece);
            }));
  there = std::move(here);
  return size;
}

Result<void> Patcher::zeros(std::uint64_t offset, std::uint32_t length) {
  if (::fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset), length) == 0) {
    return {};
  }
  const std::vector<std::byte> nothing(length);
  if (::pwrite(fd_, nothing.data(), length, static_cast<off_t>(offset)) != static_cast<ssize_t>(length)) {
    return sys_fail("pwrite(patched file)");
  }
  return {};
}

Result<void> Patcher::take(std::span<const std::byte> bytes) {
  waiting_.insert(waiting_.end(), bytes.begin(), bytes.end());
  std::size_t at = 0;
  while (waiting_.size() - at >= sizeof(Head)) {
    Head head;
    std::memcpy(&head, waiting_.data() + at, sizeof head);
    if (head.length == 0 || head.length > kPatchBlock || head.kind > kZeros) {
      return fail(Kind::corrupt, "a piece of a patch is not what it has to be");
    }
    const std::size_t content = head.kind == kZeros ? 0 : head.length;
    if (waiting_.size() - at < sizeof head + content) {
      break;
    }
    // What lies behind the end was there while the source still wrote.
    if (head.offset < size_ && head.length <= size_ - head.offset) {
      if (head.kind == kZeros) {
        FERRY_CHECK(zeros(head.offset, head.length));
      } else {
        const std::byte* from = waiting_.data() + at + sizeof head;
        for (std::size_t done = 0; done < content;) {
          const ssize_t wrote = ::pwrite(fd_, from + done, content - done, static_cast<off_t>(head.offset + done));
          if (wrote < 0 && errno != EINTR) {
            return sys_fail("pwrite(patched file)");
          }
          done += static_cast<std::size_t>(std::max<ssize_t>(wrote, 0));
        }
      }
    }
    at += sizeof head + content;
  }
  waiting_.erase(waiting_.begin(), waiting_.begin() + static_cast<std::ptrdiff_t>(at));
  return {};
}

Result<void> Patcher::finish() {
  if (!waiting_.empty()) {
    return fail(Kind::corrupt, "the last piece of a patch is cut");
  }
  if (::ftruncate(fd_, static_cast<off_t>(size_)) != 0) {
    return sys_fail("ftruncate(patched file)");
  }
  return {};
}

}  // namespace ferry::migrate

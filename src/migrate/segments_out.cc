#include "migrate/segments_out.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "base/log.h"
#include "base/zeros.h"
#include "engine/list_tree.h"
#include "image/page_store.h"
#include "image/proto/file_kinds.pb.h"
#include "state/memfd/memfd.h"
#include "state/memfd/settled.h"
#include "sys/file.h"
#include "sys/proc.h"

namespace ferry::migrate {
namespace {

using Clock = std::chrono::steady_clock;
using image::kPageSize;

constexpr std::size_t kChunk = 1U << 20;

double ms_since(Clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
}

// As much as there is; what a truncation has taken away meanwhile is zeros.
Result<void> read_chunk(int fd, std::span<std::byte> into, std::uint64_t at) {
  std::size_t have = 0;
  while (have < into.size()) {
    const ssize_t n = ::pread(fd, into.data() + have, into.size() - have, static_cast<off_t>(at + have));
    if (n < 0 && errno == EINTR) {
      continue;
    }
    if (n < 0) {
      return sys_fail("pread(shared memory)");
    }
    if (n == 0) {
      break;
    }
    have += static_cast<std::size_t>(n);
  }
  std::fill(into.begin() + static_cast<std::ptrdiff_t>(have), into.end(), std::byte{0});
  return {};
}

Result<void> read_all(int fd, SegmentPages& sink) {
  std::vector<std::byte> buffer(kChunk);
  for (std::uint64_t at = 0;;) {
    // lseek(2), SEEK_DATA: a page of shared memory that was never touched is a hole.
    const off_t data = ::lseek(fd, static_cast<off_t>(at), SEEK_DATA);
    if (data < 0 && errno == ENXIO) {
      return sink.finish();
    }
    const off_t hole = data < 0 ? -1 : ::lseek(fd, data, SEEK_HOLE);
    if (hole < 0 && errno == ENXIO) {
      continue;  // truncated between the two calls
    }
    if (hole < 0) {
      return sys_fail("lseek(shared memory)");
    }
    at = static_cast<std::uint64_t>(data) / kPageSize * kPageSize;
    const std::uint64_t end = (static_cast<std::uint64_t>(hole) + kPageSize - 1) / kPageSize * kPageSize;
    while (at < end) {
      const auto part = std::span(buffer).first(static_cast<std::size_t>(std::min<std::uint64_t>(end - at, kChunk)));
      FERRY_CHECK(read_chunk(fd, part, at));
      sink.describe(at, part.size() / kPageSize, image::kPresent);
      FERRY_CHECK(sink.append(part));
      at += part.size();
    }
  }
}

// The file behind one that is open or mapped, if it is a wanted one.
Result<UniqueFd> open_wanted(const std::string& path, const std::set<std::uint32_t>& wanted, std::uint32_t& shmid) {
  FERRY_TRY(const std::string link, sys::read_link_at(AT_FDCWD, path));
  if (!state::memfd::is_memfd(link)) {
    return UniqueFd();
  }
  FERRY_TRY(UniqueFd file, sys::open(path, O_RDONLY));
  FERRY_TRY(const struct stat info, sys::stat_fd(file.get(), path));
  // On hugetlbfs the same number is another file.
  FERRY_TRY(const std::uint32_t huge, state::memfd::huge_page_flag(file.get()));
  shmid = static_cast<std::uint32_t>(info.st_ino);
  return huge == 0 && S_ISREG(info.st_mode) && wanted.contains(shmid) ? std::move(file) : UniqueFd();
}

}  // namespace

bool PageSums::differs(std::uint64_t page, std::span<const std::byte> content) {
  if (all_zeros(content)) {
    return differs_from_zeros(page);
  }
  const XXH128_hash_t hash = XXH3_128bits(content.data(), content.size());
  const Sum sum{hash.low64, hash.high64};
  if (page >= sums_.size()) {
    sums_.resize(page + 1);
  }
  return std::exchange(sums_[page], sum) != sum;
}

bool PageSums::differs_from_zeros(std::uint64_t page) {
  return page < sums_.size() && std::exchange(sums_[page], Sum{}) != Sum{};
}

void SegmentPages::describe(std::uint64_t offset, std::uint64_t page_count, std::uint32_t flags) {
  if ((flags & image::kPresent) != 0 && page_count > 0) {
    ranges_.push_back({offset / kPageSize, offset / kPageSize + page_count});
  }
}

Result<void> SegmentPages::append(std::span<const std::byte> pages) {
  for (; !pages.empty(); pages = pages.subspan(kPageSize)) {
    if (current_ >= ranges_.size()) {
      return fail(Kind::invalid, "more pages than were described for {}", image::file_name(batch_.pagemap()));
    }
    Range& range = ranges_[current_];
    const auto content = pages.first(kPageSize);
    FERRY_CHECK(zeros_up_to(range.page));
    if (sums_.differs(range.page, content)) {
      FERRY_CHECK(put(range.page, content));
    }
    next_ = range.page + 1;
    if (++range.page == range.end) {
      ++current_;
    }
  }
  return {};
}

Result<void> SegmentPages::zeros_up_to(std::uint64_t page) {
  static constexpr std::array<std::byte, kPageSize> kZeros{};
  for (; next_ < std::min(page, sums_.end()); ++next_) {
    if (sums_.differs_from_zeros(next_)) {
      FERRY_CHECK(put(next_, kZeros));
    }
  }
  return {};
}

Result<void> SegmentPages::put(std::uint64_t page, std::span<const std::byte> content) {
  std::memcpy(batch_.tail().data(), content.data(), content.size());
  batch_.keep(page * kPageSize, content.size());
  ++sent_;
  return batch_.full() ? send() : Result<void>();
}

Result<void> SegmentPages::send() {
  const auto begin = Clock::now();
  FERRY_CHECK(streams_.send_in_order(batch_));
  sending_ms_ += ms_since(begin);
  return {};
}

Result<void> SegmentPages::finish() {
  if (current_ != ranges_.size()) {
    return fail(Kind::invalid, "fewer pages than were described for {}", image::file_name(batch_.pagemap()));
  }
  FERRY_CHECK(zeros_up_to(sums_.end()));
  return batch_.empty() ? Result<void>() : send();
}

std::set<std::uint32_t> SegmentsOut::to_settle(const image::Set& look) {
  std::set<std::uint32_t> out;
  for (const auto* inode : look.list<pb::MemfdInodeEntry>({image::Type::memfd})) {
    if (state::memfd::can_settle(*inode)) {
      out.insert(inode->shmid());
    }
  }
  return out;
}

Result<SegmentsOut> SegmentsOut::find(HostPid root, const std::set<std::uint32_t>& wanted) {
  SegmentsOut out;
  const auto take = [&](const std::string& path) {
    std::uint32_t shmid = 0;
    // What cannot be opened has just been closed or unmapped, or its process has ended.
    if (auto file = open_wanted(path, wanted, shmid); file.has_value() && *file) {
      out.segments_.try_emplace(shmid, Segment{std::move(*file), {}});
    }
  };
  for (const HostPid pid : engine::list_tree(root)) {
    if (out.segments_.size() == wanted.size()) {
      break;
    }
    const auto text = sys::read_file(fmt::format("/proc/{}/maps", pid));
    const auto mappings =
        text.has_value() ? sys::parse_maps(*text) : Result<std::vector<sys::Mapping>>(std::vector<sys::Mapping>());
    FERRY_CHECK(mappings);
    for (const sys::Mapping& m : *mappings) {
      const auto shmid = static_cast<std::uint32_t>(m.inode);
      if (m.deleted && wanted.contains(shmid) && !out.segments_.contains(shmid)) {
        take(fmt::format("/proc/{}/map_files/{:x}-{:x}", pid, m.start, m.end));
      }
    }
    if (out.segments_.size() < wanted.size()) {
      const auto numbers = sys::numeric_entries(AT_FDCWD, fmt::format("/proc/{}/fd", pid));
      for (const int number : numbers.has_value() ? *numbers : std::vector<int>()) {
        take(fmt::format("/proc/{}/fd/{}", pid, number));
      }
    }
  }
  return out;
}

Result<SegmentsOut::Sent> SegmentsOut::send(PageStreams& streams) {
  Sent out;
  const auto begin = Clock::now();
  double sending_ms = 0;
  for (auto& [shmid, segment] : segments_) {
    SegmentPages sink(streams, {image::Type::pagemap_shmem, shmid}, segment.sums);
    FERRY_CHECK(read_all(segment.file.get(), sink).during("sending shared memory {}", shmid));
    out.pages += sink.sent_pages();
    sending_ms += sink.sending_ms();
  }
  out.looking_ms = ms_since(begin) - sending_ms;
  return out;
}

std::unique_ptr<image::PageSink> SegmentsOut::last(PageStreams& streams, image::Name pagemap) {
  const auto segment = segments_.find(static_cast<std::uint32_t>(pagemap.id));
  if (pagemap.type != image::Type::pagemap_shmem || segment == segments_.end()) {
    return nullptr;
  }
  return std::make_unique<SegmentPages>(streams, pagemap, segment->second.sums);
}

}  // namespace ferry::migrate

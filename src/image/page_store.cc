#include "image/page_store.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <set>

#include "image/kinds.h"
#include "image/proto/mm.pb.h"
#include "sys/file.h"

namespace ferry::image {
namespace {

// Each level keeps a descriptor open; a migration makes some tens of rounds.
constexpr std::size_t kMaxParents = 512;

// A path as a user would write it from the set's directory: parent/parent/pagemap-1.img.
std::string path_at(std::size_t level, std::string_view file) {
  std::string path;
  for (std::size_t i = 0; i < level; ++i) {
    path += "parent/";
  }
  return path.append(file);
}

std::uint32_t flags_of(const pb::PagemapEntry& entry) {
  if (!entry.has_flags()) {
    // How CRIU wrote it before there were flags.
    return entry.in_parent() ? kInParent : kPresent;
  }
  return entry.flags() | (entry.in_parent() ? std::uint32_t{kInParent} : 0U);
}

// Of a parent only its pagemaps are read, so its version is seen from the first word of one.
std::uint32_t version_of(std::string_view bytes) {
  const std::array<unsigned char, 4> magic{kImageMagic & 0xff, kImageMagic >> 8 & 0xff, kImageMagic >> 16 & 0xff,
                                           kImageMagic >> 24 & 0xff};
  return bytes.size() >= magic.size() && std::memcmp(bytes.data(), magic.data(), magic.size()) == 0 ? 2 : 1;
}

}  // namespace

struct PageStore::Range {
  std::uint64_t vaddr = 0;
  std::uint64_t page_count = 0;
  std::uint32_t flags = 0;
  std::uint64_t offset = 0;  // in the pages file, if kPresent
  int fd = -1;
  [[nodiscard]] std::uint64_t end() const { return vaddr + page_count * kPageSize; }
};

struct PageStore::Level {
  UniqueFd directory;
  std::map<std::uint32_t, UniqueFd> pages;
  std::map<Name, std::vector<Range>> ranges;
};

PageStore::PageStore(const Set& set) : set_(&set) {}
PageStore::PageStore(PageStore&&) noexcept = default;
PageStore& PageStore::operator=(PageStore&&) noexcept = default;
PageStore::~PageStore() = default;

std::string pages_file_name(std::uint32_t pages_id) { return fmt::format("pages-{}.img", pages_id); }

Result<PageStore> PageStore::open(const Set& set, int directory) {
  PageStore store(set);
  std::set<std::pair<dev_t, ino_t>> seen;
  FERRY_TRY(auto fd, sys::open_at(directory, ".", O_RDONLY | O_DIRECTORY));
  for (;;) {
    FERRY_TRY(const auto stat, sys::stat_fd(fd.get(), "image directory"));
    if (!seen.emplace(stat.st_dev, stat.st_ino).second || seen.size() > kMaxParents) {
      return fail(Kind::corrupt, "{}: the chain of parent sets {}", path_at(seen.size() - 1, "parent"),
                  seen.size() > kMaxParents ? "is too long" : "has a loop");
    }
    auto level = std::make_unique<Level>();
    level->directory = std::move(fd);
    const int here = level->directory.get();
    store.levels_.push_back(std::move(level));
    auto parent = sys::open_at(here, "parent", O_RDONLY | O_DIRECTORY);
    if (!parent) {
      if (parent.error().os_errno == ENOENT) {
        // A link that leads nowhere matters only if a page is wanted from there, and then it is named.
        return store;
      }
      return std::move(parent).error().os_errno == ENOTDIR
                 ? Result<PageStore>(fail(Kind::corrupt, "{} is not a directory", path_at(seen.size() - 1, "parent")))
                 : Result<PageStore>(tl::unexpect, std::move(parent).error());
    }
    fd = std::move(*parent);
  }
}

// The pagemap of one level, checked and sorted, its pages file opened.
Result<const std::vector<PageStore::Range>*> PageStore::ranges(std::size_t level, Name pagemap) {
  const std::string path = path_at(level, file_name(pagemap));
  if (level >= levels_.size()) {
    return fail(Kind::corrupt, "{}: there is no such parent set, but pages are said to be in it", path);
  }
  Level& here = *levels_[level];
  if (const auto known = here.ranges.find(pagemap); known != here.ranges.end()) {
    return &known->second;
  }

  std::optional<Set> own;
  const Set* set = set_;
  if (level != 0) {
    auto bytes = sys::read_file_at(here.directory.get(), file_name(pagemap));
    if (!bytes) {
      return fail(bytes.error().kind == Kind::gone ? Kind::corrupt : bytes.error().kind, "{}: {}", path,
                  bytes.error().what);
    }
    own.emplace();
    const auto version = version_of(*bytes);
    FERRY_CHECK(decode_file(*own, pagemap, std::move(*bytes), version).during("reading {}", path));
    set = &*own;
  }
  if (!set->has(pagemap)) {
    return fail(Kind::gone, "there is no {}", path);
  }
  FERRY_TRY(const auto* head, set->one<pb::PagemapHead>(pagemap));

  std::vector<Range> out;
  std::uint64_t offset = 0;
  for (const auto* entry : set->list<pb::PagemapEntry>(pagemap)) {
    Range range;
    range.vaddr = entry->vaddr();
    range.page_count = entry->has_nr_pages() ? entry->nr_pages() : entry->compat_nr_pages();
    range.flags = flags_of(*entry);
    range.offset = offset;
    if (range.vaddr % kPageSize != 0 || range.page_count == 0 ||
        range.page_count > (UINT64_MAX - range.vaddr) / kPageSize) {
      return fail(Kind::corrupt, "{}: {} pages at {:#x} are no range", path, range.page_count, range.vaddr);
    }
    if ((range.flags & ~std::uint32_t{kInParent | kLazy | kPresent}) != 0 ||
        (range.flags & (kInParent | kPresent)) == (kInParent | kPresent)) {
      return fail(Kind::corrupt, "{}: the range at {:#x} has flags {:#x}", path, range.vaddr, range.flags);
    }
    if ((range.flags & kPresent) != 0) {
      if (range.page_count > (UINT64_MAX - offset) / kPageSize) {
        return fail(Kind::corrupt, "{}: more pages than any file holds, at {:#x}", path, range.vaddr);
      }
      offset += range.page_count * kPageSize;
    }
    out.push_back(range);
  }

  if (offset != 0) {
    const auto pages = path_at(level, pages_file_name(head->pages_id()));
    auto& fd = here.pages[head->pages_id()];
    if (!fd) {
      auto opened =
          sys::open_at(here.directory.get(), pages_file_name(head->pages_id()), O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
      if (!opened) {
        return fail(opened.error().kind == Kind::gone ? Kind::corrupt : opened.error().kind, "{} (wanted by {}): {}",
                    pages, path, opened.error().what);
      }
      fd = std::move(*opened);
    }
    FERRY_TRY(const auto stat, sys::stat_fd(fd.get(), pages));
    if (!S_ISREG(stat.st_mode) || static_cast<std::uint64_t>(stat.st_size) < offset) {
      return fail(Kind::corrupt, "{} has {} bytes, but {} tells of {}", pages, stat.st_size, path, offset);
    }
    for (Range& range : out) {
      range.fd = (range.flags & kPresent) != 0 ? fd.get() : -1;
    }
  }

  std::sort(out.begin(), out.end(), [](const Range& a, const Range& b) { return a.vaddr < b.vaddr; });
  for (std::size_t i = 1; i < out.size(); ++i) {
    if (out[i].vaddr < out[i - 1].end()) {
      return fail(Kind::corrupt, "{}: two ranges overlap at {:#x}", path, out[i].vaddr);
    }
  }
  return &here.ranges.emplace(pagemap, std::move(out)).first->second;
}

Result<void> PageStore::resolve(std::size_t level, Name pagemap, const Range& range, std::vector<Extent>& out) {
  if ((range.flags & kInParent) == 0) {
    const bool continues = !out.empty() && out.back().fd == range.fd &&
                           out.back().vaddr + out.back().page_count * kPageSize == range.vaddr &&
                           (range.fd < 0 || out.back().offset + out.back().page_count * kPageSize == range.offset);
    if (continues) {
      out.back().page_count += range.page_count;
    } else {
      out.push_back({range.vaddr, range.page_count, range.fd, range.fd < 0 ? 0 : range.offset});
    }
    return {};
  }
  FERRY_TRY(const auto* above, ranges(level + 1, pagemap));
  // The last range that starts at or before the wanted one.
  auto it = std::upper_bound(above->begin(), above->end(), range.vaddr,
                             [](std::uint64_t vaddr, const Range& r) { return vaddr < r.vaddr; });
  if (it != above->begin()) {
    --it;
  }
  for (std::uint64_t at = range.vaddr; at < range.end(); ++it) {
    if (it == above->end() || it->vaddr > at || it->end() <= at) {
      return fail(Kind::corrupt, "{}: the page at {:#x} is said to be there and is not",
                  path_at(level + 1, file_name(pagemap)), at);
    }
    const std::uint64_t end = std::min(it->end(), range.end());
    const Range part{at, (end - at) / kPageSize, it->flags, it->offset + (at - it->vaddr), it->fd};
    FERRY_CHECK(resolve(level + 1, pagemap, part, out));
    at = end;
  }
  return {};
}

Result<std::vector<Extent>> PageStore::extents(Name pagemap) {
  FERRY_TRY(const auto* all, ranges(0, pagemap));
  std::vector<Extent> out;
  out.reserve(all->size());
  for (const Range& range : *all) {
    FERRY_CHECK(resolve(0, pagemap, range, out));
  }
  return out;
}

Result<UniqueFd> create_pages_file(int directory, const std::string& file) {
  if (::unlinkat(directory, file.c_str(), 0) != 0 && errno != ENOENT) {
    return sys_fail(fmt::format("unlinkat({})", file));
  }
  return sys::open_at(directory, file, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0644);
}

Result<PageWriter> PageWriter::create(Set& set, Name pagemap, int directory, std::uint32_t pages_id) {
  const auto file = pages_file_name(pages_id);
  FERRY_TRY(auto fd, create_pages_file(directory, file));
  pb::PagemapHead head;
  head.set_pages_id(pages_id);
  set.add(pagemap, std::move(head));
  return PageWriter(set, pagemap, std::move(fd), file);
}

PageWriter PageWriter::create(Set& set, Name pagemap, Reservation& reserved, std::uint32_t pages_id) {
  pb::PagemapHead head;
  head.set_pages_id(pages_id);
  set.add(pagemap, std::move(head));
  PageWriter out(set, pagemap, reserved.take_file(), pages_file_name(pages_id));
  out.reserved_ = &reserved;
  return out;
}

void PageWriter::describe(std::uint64_t vaddr, std::uint64_t page_count, std::uint32_t flags) {
  if (page_count == 0) {
    return;
  }
  present_pages_ += (flags & kPresent) != 0 ? page_count : 0;
  const auto& entries = set_->entries(pagemap_);
  if (entries.size() > 1) {
    auto& last = static_cast<pb::PagemapEntry&>(*entries.back().message);
    if (last.vaddr() + last.nr_pages() * kPageSize == vaddr && last.flags() == flags) {
      last.set_nr_pages(last.nr_pages() + page_count);
      return;
    }
  }
  pb::PagemapEntry entry;
  entry.set_vaddr(vaddr);
  entry.set_compat_nr_pages(0);
  entry.set_flags(flags);
  entry.set_nr_pages(page_count);
  set_->add(pagemap_, std::move(entry));
}

Result<void> PageWriter::append(std::span<const std::byte> pages) {
  const std::span<std::byte> ahead = reserved_ == nullptr ? std::span<std::byte>() : reserved_->bytes();
  if (written_ < ahead.size()) {
    const std::size_t fits = std::min<std::size_t>(pages.size(), ahead.size() - written_);
    std::memcpy(ahead.data() + written_, pages.data(), fits);
    written_ += fits;
    pages = pages.subspan(fits);
    if (written_ == ahead.size() && ::lseek(fd_.get(), static_cast<off_t>(written_), SEEK_SET) < 0) {
      return sys_fail(fmt::format("lseek({})", file_));
    }
  }
  FERRY_CHECK(sys::write_all(fd_.get(), pages.data(), pages.size(), file_));
  written_ += pages.size();
  return {};
}

Result<void> PageWriter::append_zeros(std::uint64_t bytes) {
  written_ += bytes;
  const auto end = static_cast<off_t>(written_);
  if (::ftruncate(fd_.get(), end) != 0 || ::lseek(fd_.get(), end, SEEK_SET) < 0) {
    return sys_fail(fmt::format("ftruncate({})", file_));
  }
  return {};
}

std::span<std::byte> PageWriter::claim(std::uint64_t bytes) {
  if (reserved_ == nullptr || written_ + bytes >= reserved_->bytes().size()) {
    return {};
  }
  const auto out = reserved_->bytes().subspan(written_, bytes);
  written_ += bytes;
  return out;
}

Result<void> PageWriter::finish() {
  if (written_ != present_pages_ * kPageSize) {
    return fail(Kind::invalid, "{} has {} bytes, but {} tells of {} pages", file_, written_, file_name(pagemap_),
                present_pages_);
  }
  if (reserved_ != nullptr && ::ftruncate(fd_.get(), static_cast<off_t>(written_)) != 0) {
    return sys_fail(fmt::format("ftruncate({})", file_));
  }
  return {};
}

}  // namespace ferry::image

#include "migrate/pages.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "sys/mount_api.h"

namespace ferry::migrate {
namespace {

using image::kPageSize;

constexpr std::size_t kPiece = 4U << 20;  // of one frame
constexpr std::uint64_t kAddressSpace = 1ULL << 47;  // bytes; none is larger

bool is_zero(std::span<const std::byte> page) {
  // Compared with itself one byte further on: all bytes are equal, and the first is zero.
  return page.front() == std::byte{} && std::memcmp(page.data(), page.data() + 1, page.size() - 1) == 0;
}

}  // namespace

void PageSender::describe(std::uint64_t vaddr, std::uint64_t page_count, std::uint32_t flags) {
  if ((flags & image::kPresent) != 0) {
    ranges_.push_back({vaddr, page_count * kPageSize});
  }
}

Result<void> PageSender::append(std::span<const std::byte> pages) {
  FERRY_CHECK(begin());
  while (!pages.empty()) {
    if (current_ >= ranges_.size()) {
      return fail(Kind::invalid, "more pages than were described for {}", image::file_name(pagemap_));
    }
    const Range& range = ranges_[current_];
    const auto part = pages.first(std::min<std::uint64_t>(pages.size(), range.bytes - filled_));
    FERRY_CHECK(send(range.vaddr + filled_, part));
    filled_ += part.size();
    pages = pages.subspan(part.size());
    if (filled_ == range.bytes) {
      ++current_;
      filled_ = 0;
    }
  }
  return {};
}

Result<void> PageSender::begin() {
  if (begun_) {
    return {};
  }
  begun_ = true;
  return flush(FrameKind::zeros, 0, {});
}

// Runs of pages that are all zero, or all not.
Result<std::uint64_t> PageSender::send(std::uint64_t vaddr, std::span<const std::byte> pages) {
  std::uint64_t sent = 0;
  std::size_t from = 0;
  while (from < pages.size()) {
    const bool zero = is_zero(pages.subspan(from, kPageSize));
    std::size_t to = from + kPageSize;
    while (to < pages.size() && (zero || to - from < kPiece) && is_zero(pages.subspan(to, kPageSize)) == zero) {
      to += kPageSize;
    }
    FERRY_CHECK(flush(zero ? FrameKind::zeros : FrameKind::pages, vaddr + from, pages.subspan(from, to - from)));
    sent += zero ? 0 : to - from;
    from = to;
  }
  return sent;
}

Result<void> PageSender::flush(FrameKind kind, std::uint64_t vaddr, std::span<const std::byte> pages) {
  const PageHead head{.image_type = static_cast<std::uint32_t>(pagemap_.type),
                      .reserved = 0,
                      .image_id = pagemap_.id,
                      .vaddr = vaddr,
                      .pages = pages.size() / kPageSize};
  FERRY_CHECK(link_.check_interrupt());
  return link_.send_frame(kind, std::as_bytes(std::span(&head, 1)),
                          kind == FrameKind::pages ? pages : std::span<const std::byte>());
}

Result<void> PageSender::finish() {
  FERRY_CHECK(begin());
  if (current_ != ranges_.size()) {
    return fail(Kind::invalid, "fewer pages than were described for {}", image::file_name(pagemap_));
  }
  return {};
}

Result<ArrivedPages> receive_pages(Link& link, const Link::Frame& frame, std::vector<std::byte>& buffer) {
  PageHead head;
  if (frame.length < sizeof head) {
    return fail(Kind::corrupt, "{} sent pages without saying where they belong", link.peer());
  }
  FERRY_CHECK(link.receive_bytes(&head, sizeof head));
  const std::uint64_t body = frame.length - sizeof head;
  const bool zeros = frame.kind == FrameKind::zeros;
  const auto type = static_cast<image::Type>(head.image_type);
  if (type != image::Type::pagemap && type != image::Type::pagemap_shmem) {
    return fail(Kind::corrupt, "{} sent pages of an image that has none", link.peer());
  }
  if (head.vaddr % kPageSize != 0 || head.vaddr > kAddressSpace || head.pages > (kAddressSpace - head.vaddr) / kPageSize ||
      body != (zeros ? 0 : head.pages * kPageSize)) {
    return fail(Kind::corrupt, "{} sent pages whose head does not fit them", link.peer());
  }
  buffer.resize(body);
  FERRY_CHECK(link.receive_bytes(buffer.data(), buffer.size()));
  return ArrivedPages{{type, head.image_id}, head.vaddr, head.pages, zeros, buffer};
}

Result<PageFiles> PageFiles::make() {
  PageFiles out;
  FERRY_TRY(const UniqueFd fs, sys::fs_open("tmpfs"));
  FERRY_CHECK(sys::fs_set_string(fs.get(), "mode", "0700"));
  // No limit of its own: the memory is needed anyway, and the tree's own limit is its cgroup's.
  FERRY_CHECK(sys::fs_set_string(fs.get(), "size", "0"));
  FERRY_CHECK(sys::fs_create(fs.get()));
  FERRY_TRY(out.directory_, sys::fs_mount(fs.get(), "tmpfs"));
  return out;
}

Result<void> PageFiles::begin(image::Name pagemap) {
  if (writer_) {
    FERRY_CHECK(writer_->finish());
    writer_.reset();
  }
  if (pagemaps_->has(pagemap)) {
    return fail(Kind::corrupt, "the pages of {} arrive twice", image::file_name(pagemap));
  }
  FERRY_TRY(auto writer, image::PageWriter::create(*pagemaps_, pagemap, directory_.get(), ++last_id_));
  writer_.emplace(std::move(writer));
  current_ = pagemap;
  return {};
}

Result<void> PageFiles::keep(const ArrivedPages& arrived) {
  if (!writer_ || arrived.name != current_) {
    FERRY_CHECK(begin(arrived.name));
  }
  writer_->describe(arrived.vaddr, arrived.pages, image::kPresent);
  return arrived.zeros ? writer_->append_zeros(arrived.pages * kPageSize) : writer_->append(arrived.content);
}

Result<int> PageFiles::complete(image::Set set) {
  if (writer_) {
    FERRY_CHECK(writer_->finish());
    writer_.reset();
  }
  for (const image::Name pagemap : pagemaps_->names()) {
    for (const image::Entry& entry : pagemaps_->entries(pagemap)) {
      set.add(pagemap, entry.message);
    }
  }
  FERRY_CHECK(image::save(set, directory_.get()));
  return directory_.get();
}

}  // namespace ferry::migrate

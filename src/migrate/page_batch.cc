#include "migrate/page_batch.h"

#include <zstd.h>

#include <algorithm>
#include <cstring>

#include "base/zeros.h"
#include "image/page_store.h"

namespace ferry::migrate {
namespace {

using image::kPageSize;

constexpr std::uint64_t kAddressSpace = 1ULL << 47;  // bytes; none is larger
constexpr std::uint32_t kMostPagesOfRun = 1U << 30;
constexpr int kLevel = 1;  // a network that compression can help is fast enough for no other

struct FreeContext {
  void operator()(ZSTD_CCtx* context) const { ZSTD_freeCCtx(context); }
  void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
};

}  // namespace

struct PageBatch::Packer {
  std::unique_ptr<ZSTD_CCtx, FreeContext> context{ZSTD_createCCtx()};
  std::vector<std::byte> packed = std::vector<std::byte>(kBatchContent);
};

PageBatch::PageBatch() : content_(kBatchContent) { runs_.reserve(kBatchRuns); }
PageBatch::~PageBatch() = default;

void PageBatch::begin(image::Name pagemap) {
  pagemap_ = pagemap;
  runs_.clear();
  filled_ = read_ = 0;
}

std::span<std::byte> PageBatch::tail() { return std::span(content_).subspan(read_); }

bool PageBatch::full() const { return room() < kPageSize; }

void PageBatch::add_run(std::uint64_t vaddr, bool zero) {
  if (!runs_.empty()) {
    PageRun& last = runs_.back();
    if ((last.zero != 0) == zero && last.vaddr + last.pages * kPageSize == vaddr && last.pages < kMostPagesOfRun) {
      ++last.pages;
      return;
    }
  }
  runs_.push_back({vaddr, 1, zero ? 1U : 0U});
}

void PageBatch::keep(std::uint64_t vaddr, std::uint64_t bytes) {
  for (std::uint64_t at = 0; at < bytes; at += kPageSize) {
    const std::byte* page = content_.data() + read_;
    const bool zero = all_zeros({page, kPageSize});
    add_run(vaddr + at, zero);
    if (!zero) {
      if (read_ != filled_) {
        std::memcpy(content_.data() + filled_, page, kPageSize);
      }
      filled_ += kPageSize;
    }
    read_ += kPageSize;
  }
}

void PageBatch::drop(std::uint64_t bytes) { read_ += bytes; }

Result<void> PageBatch::send(Link& link, bool pack) {
  BatchHead head{.image_type = static_cast<std::uint32_t>(pagemap_.type),
                 .packing = Packing::none,
                 .image_id = pagemap_.id,
                 .runs = static_cast<std::uint32_t>(runs_.size()),
                 .reserved = 0,
                 .content = filled_};
  std::span<const std::byte> content = std::span(content_).first(filled_);
  if (pack && filled_ > 0) {
    if (packer_ == nullptr) {
      packer_ = std::make_unique<Packer>();
    }
    // With room for less than there is, what does not become smaller is an error and goes as it is.
    const std::size_t size =
        ZSTD_compressCCtx(packer_->context.get(), packer_->packed.data(), filled_ - 1, content.data(), filled_, kLevel);
    if (ZSTD_isError(size) == 0) {
      head.packing = Packing::zstd;
      content = std::span(packer_->packed).first(size);
    }
  }
  std::vector<std::byte> front(sizeof head + runs_.size() * sizeof(PageRun));
  std::memcpy(front.data(), &head, sizeof head);
  if (!runs_.empty()) {
    std::memcpy(front.data() + sizeof head, runs_.data(), runs_.size() * sizeof(PageRun));
  }
  FERRY_CHECK(link.check_interrupt());
  FERRY_CHECK(link.send_frame(FrameKind::pages, front, content));
  begin(pagemap_);
  return {};
}

struct BatchReader::Unpacker {
  std::unique_ptr<ZSTD_DCtx, FreeContext> context{ZSTD_createDCtx()};
};

BatchReader::BatchReader() = default;
BatchReader::~BatchReader() = default;
BatchReader::BatchReader(BatchReader&&) noexcept = default;
BatchReader& BatchReader::operator=(BatchReader&&) noexcept = default;

Result<void> BatchReader::receive(Link& link, const Link::Frame& frame, const TakePages& take) {
  if (frame.length > sizeof(BatchHead) + kBatchRuns * sizeof(PageRun) + kBatchContent) {
    return fail(Kind::corrupt, "{} sent {} bytes of pages at once, which is too much", link.peer(), frame.length);
  }
  body_.resize(frame.length);
  FERRY_CHECK(link.receive_bytes(body_.data(), body_.size()));
  return read(body_, link.peer(), take);
}

Result<void> BatchReader::read(std::span<const std::byte> body, std::string_view peer, const TakePages& take) {
  BatchHead head;
  if (body.size() < sizeof head) {
    return fail(Kind::corrupt, "{} sent pages without saying where they belong", peer);
  }
  std::memcpy(&head, body.data(), sizeof head);
  body = body.subspan(sizeof head);
  const auto type = static_cast<image::Type>(head.image_type);
  if (type != image::Type::pagemap && type != image::Type::pagemap_shmem) {
    return fail(Kind::corrupt, "{} sent pages of an image that has none", peer);
  }
  if (head.runs > kBatchRuns || head.content > kBatchContent || head.reserved != 0 ||
      body.size() < head.runs * sizeof(PageRun)) {
    return fail(Kind::corrupt, "{} sent pages whose head does not fit them", peer);
  }
  std::vector<PageRun> runs(head.runs);
  if (!runs.empty()) {
    std::memcpy(runs.data(), body.data(), runs.size() * sizeof(PageRun));
  }
  body = body.subspan(runs.size() * sizeof(PageRun));
  std::uint64_t wanted = 0;
  for (const PageRun& run : runs) {
    if (run.vaddr % kPageSize != 0 || run.vaddr > kAddressSpace || run.pages == 0 || run.pages > kMostPagesOfRun ||
        run.pages > (kAddressSpace - run.vaddr) / kPageSize || run.zero > 1) {
      return fail(Kind::corrupt, "{} sent {} pages for address {:#x}, which cannot be", peer, run.pages, run.vaddr);
    }
    wanted += run.zero != 0 ? 0 : run.pages * kPageSize;
  }
  if (wanted != head.content) {
    return fail(Kind::corrupt, "{} sent pages whose content does not fit them", peer);
  }
  std::span<const std::byte> content = body;
  if (head.packing == Packing::zstd) {
    if (unpacker_ == nullptr) {
      unpacker_ = std::make_unique<Unpacker>();
    }
    content_.resize(head.content);
    const std::size_t size =
        ZSTD_decompressDCtx(unpacker_->context.get(), content_.data(), content_.size(), body.data(), body.size());
    if (ZSTD_isError(size) != 0) {
      return fail(Kind::corrupt, "{} sent packed pages that cannot be unpacked: {}", peer, ZSTD_getErrorName(size));
    }
    content = std::span(content_).first(size);
  } else if (head.packing != Packing::none) {
    return fail(Kind::corrupt, "{} sent pages that are packed in an unknown way", peer);
  }
  if (content.size() != head.content) {
    return fail(Kind::corrupt, "{} sent {} bytes of pages instead of {}", peer, content.size(), head.content);
  }
  std::vector<ArrivedPages> arrived;
  arrived.reserve(runs.size());
  for (const PageRun& run : runs) {
    const std::uint64_t bytes = run.zero != 0 ? 0 : run.pages * kPageSize;
    arrived.push_back({run.vaddr, run.pages, run.zero != 0, content.first(bytes)});
    content = content.subspan(bytes);
  }
  return take({type, head.image_id}, arrived);
}

}  // namespace ferry::migrate

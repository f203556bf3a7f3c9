// Pages of one pagemap on their way: where they belong, and the content of those that are not all zeros.
//
// On the wire, the body of a frame of kind `pages`: a BatchHead, so many PageRuns, and the content of all runs
// that have one, in their order, packed or not.  A batch without runs says that there is such a pagemap.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/error.h"
#include "image/set.h"
#include "migrate/link.h"

namespace ferry::migrate {

enum class Packing : std::uint32_t { none = 0, zstd = 1 };

struct BatchHead {
  std::uint32_t image_type = 0;  // image::Type of the pagemap
  Packing packing = Packing::none;
  std::uint64_t image_id = 0;
  std::uint32_t runs = 0;
  std::uint32_t reserved = 0;
  std::uint64_t content = 0;  // bytes, when it is unpacked
};
static_assert(sizeof(BatchHead) == 32);

struct PageRun {
  std::uint64_t vaddr = 0;
  std::uint32_t pages = 0;
  std::uint32_t zero = 0;  // 1: they hold nothing but zeros, and have no content
};
static_assert(sizeof(PageRun) == 16);

inline constexpr std::size_t kBatchContent = 1U << 20;           // bytes at most
inline constexpr std::size_t kBatchRuns = kBatchContent / 4096;  // each has a page at least that went through tail()

// One that is being filled.
class PageBatch {
 public:
  PageBatch();
  ~PageBatch();
  PageBatch(const PageBatch&) = delete;
  PageBatch& operator=(const PageBatch&) = delete;

  void begin(image::Name pagemap);
  [[nodiscard]] image::Name pagemap() const { return pagemap_; }
  // Pages are first put into tail() and then accounted for in the same order: kept, or thrown away.
  [[nodiscard]] std::span<std::byte> tail();
  void keep(std::uint64_t vaddr, std::uint64_t bytes);
  void drop(std::uint64_t bytes);
  // Whether there is no room for another page.
  [[nodiscard]] bool full() const;
  [[nodiscard]] bool empty() const { return runs_.empty(); }
  [[nodiscard]] std::uint64_t content_bytes() const { return filled_; }
  // As one frame; packed if asked for and if that makes it smaller.
  Result<void> send(Link& link, bool pack);

 private:
  void add_run(std::uint64_t vaddr, bool zero);
  [[nodiscard]] std::size_t room() const { return kBatchContent - read_; }

  struct Packer;
  image::Name pagemap_;
  std::vector<PageRun> runs_;
  std::vector<std::byte> content_;
  std::size_t filled_ = 0;  // bytes that are kept
  std::size_t read_ = 0;    // of the tail, what was accounted for, behind what is kept
  std::unique_ptr<Packer> packer_;
};

// A run of a batch that has arrived.
struct ArrivedPages {
  std::uint64_t vaddr = 0;
  std::uint64_t pages = 0;
  bool zeros = false;
  std::span<const std::byte> content;  // empty for zeros
};
// All runs of one batch, in their order; there may be none.
using TakePages = std::function<Result<void>(image::Name pagemap, std::span<const ArrivedPages> runs)>;

// Reads batches; one thread uses it.
class BatchReader {
 public:
  BatchReader();
  ~BatchReader();
  BatchReader(BatchReader&&) noexcept;
  BatchReader& operator=(BatchReader&&) noexcept;

  // The body of a frame whose head was read.
  // Errors: corrupt, before anything is taken; whatever `take` returns.
  Result<void> receive(Link& link, const Link::Frame& frame, const TakePages& take);
  // The same with the body at hand.
  Result<void> read(std::span<const std::byte> body, std::string_view peer, const TakePages& take);

 private:
  struct Unpacker;
  std::vector<std::byte> body_;
  std::vector<std::byte> content_;
  std::unique_ptr<Unpacker> unpacker_;
};

}  // namespace ferry::migrate

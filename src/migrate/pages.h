// Memory on its way: pages become frames on one side and are kept until their tree exists on the other.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"
#include "image/page_sink.h"
#include "image/page_store.h"
#include "image/set.h"
#include "migrate/link.h"

namespace ferry::migrate {

// The pages of one pagemap as frames.  A page of zeros crosses as its address only.  The first frame is
// one of no zeros, so that an empty pagemap arrives as well.
class PageSender : public image::PageSink {
 public:
  PageSender(Link& link, image::Name pagemap) : link_(link), pagemap_(pagemap) {}
  void describe(std::uint64_t vaddr, std::uint64_t page_count, std::uint32_t flags) override;
  Result<void> append(std::span<const std::byte> pages) override;
  Result<void> finish() override;
  // Without a description, of a process whose skeleton takes pages in any order.  The value is the number of
  // bytes that were not zeros.
  Result<std::uint64_t> send(std::uint64_t vaddr, std::span<const std::byte> pages);

 private:
  Result<void> begin();
  Result<void> flush(FrameKind kind, std::uint64_t vaddr, std::span<const std::byte> pages);

  struct Range {
    std::uint64_t vaddr = 0;
    std::uint64_t bytes = 0;
  };
  Link& link_;
  image::Name pagemap_;
  bool begun_ = false;
  std::vector<Range> ranges_;  // present, in order
  std::size_t current_ = 0;
  std::uint64_t filled_ = 0;   // bytes of the current one
};

// A frame of pages or zeros.
struct ArrivedPages {
  image::Name name;
  std::uint64_t vaddr = 0;
  std::uint64_t pages = 0;
  bool zeros = false;
  std::span<const std::byte> content;  // empty for zeros
};
// Reads the body of the frame; `buffer` holds the content.
Result<ArrivedPages> receive_pages(Link& link, const Link::Frame& frame, std::vector<std::byte>& buffer);

// Received pages, until the tree is grown: the pages of an image set, in a tmpfs that is mounted nowhere
// and so vanishes with the descriptor, whatever becomes of us.
class PageFiles {
 public:
  static Result<PageFiles> make();
  PageFiles(PageFiles&&) = default;
  PageFiles& operator=(PageFiles&&) = delete;

  // The pages of a pagemap have to come in order, and once.
  Result<void> keep(const ArrivedPages& arrived);
  [[nodiscard]] int directory() const { return directory_.get(); }
  // Adds the pagemaps to the rest of the set and writes all of it beside the pages.  The value is the
  // open directory.
  Result<int> complete(image::Set set);

 private:
  PageFiles() = default;
  Result<void> begin(image::Name pagemap);

  UniqueFd directory_;
  // The pagemaps only; on the heap, because a writer keeps its address.
  std::unique_ptr<image::Set> pagemaps_ = std::make_unique<image::Set>();
  std::optional<image::PageWriter> writer_;
  image::Name current_;
  std::uint32_t last_id_ = 0;
};

}  // namespace ferry::migrate

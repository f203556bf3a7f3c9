// Where the pages of a set are, and how they get there.
//
// A pagemap lists ranges; the content of those that are present stands in pages-N.img in the same order.
// Ranges of an incremental set may say that their content is in the set that `parent` in the directory
// leads to, at the same address, and that set may point further up (docs/images.md).
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"
#include "image/page_sink.h"
#include "image/set.h"

namespace ferry::image {

inline constexpr std::uint64_t kPageSize = 4096;

enum PageFlags : std::uint32_t {
  kInParent = 1,
  kLazy = 2,
  kPresent = 4,
};

struct Extent {
  std::uint64_t vaddr = 0;  // of a shared-memory segment: offset in it
  std::uint64_t page_count = 0;
  int fd = -1;               // a pages file, owned by the store; -1: a page server has the content
  std::uint64_t offset = 0;  // in the file, in bytes
};

class PageStore {
 public:
  // `set` has to live as long as the store.  Opens the chain of parents.
  // Errors: corrupt (a chain that has a loop or is too long), os.
  static Result<PageStore> open(const Set& set, int directory);
  PageStore(PageStore&&) noexcept;
  PageStore& operator=(PageStore&&) noexcept;
  ~PageStore();

  // The pages of Name{pagemap, pid} or Name{pagemap_shmem, id}: sorted, not overlapping, page-aligned,
  // neighbours in both memory and file merged.  What no extent covers has no stored content.
  // Errors: gone (no such pagemap), corrupt (naming file and address).
  Result<std::vector<Extent>> extents(Name pagemap);

 private:
  struct Level;
  struct Range;
  explicit PageStore(const Set& set);
  Result<const std::vector<Range>*> ranges(std::size_t level, Name pagemap);
  Result<void> resolve(std::size_t level, Name pagemap, const Range& range, std::vector<Extent>& out);

  const Set* set_;
  std::vector<std::unique_ptr<Level>> levels_;  // the set's own directory, then its parents
};

// A pages-N.img of which a part is already there: allocated on its file system and mapped.  Made before a
// tree is frozen, so that neither a full disk nor the making of page cache is met within the freeze.
class Reservation {
 public:
  // An existing file is replaced.  Errors: os if there is no room for `bytes`.  Where the file system
  // cannot allocate ahead, size() is 0.
  static Result<Reservation> make(int directory, std::uint32_t pages_id, std::uint64_t bytes);
  Reservation() = default;
  Reservation(Reservation&& other) noexcept;
  Reservation& operator=(Reservation&& other) noexcept;
  ~Reservation();
  [[nodiscard]] std::span<std::byte> bytes() const { return {base_, size_}; }
  UniqueFd take_file() { return std::move(fd_); }

 private:
  UniqueFd fd_;
  std::byte* base_ = nullptr;
  std::size_t size_ = 0;
};

// Writes one pages-N.img and the pagemap that describes it.
class PageWriter final : public PageSink {
 public:
  // Creates pages-`pages_id`.img (an existing one is replaced) and adds `pagemap` with its head to the
  // set.  The set has to outlive the writer; two threads must not share one.
  static Result<PageWriter> create(Set& set, Name pagemap, int directory, std::uint32_t pages_id);
  // The same in a file that was made ahead, whatever of it is needed.
  // `reserved` has to outlive the writer.
  static PageWriter create(Set& set, Name pagemap, Reservation& reserved, std::uint32_t pages_id);

  // Adds a range to the pagemap; a range that continues the last one with the same flags extends it.
  void describe(std::uint64_t vaddr, std::uint64_t page_count, std::uint32_t flags) override;
  // Content of the next kPresent ranges, behind what is in the file.
  Result<void> append(std::span<const std::byte> pages) override;
  std::span<std::byte> claim(std::uint64_t bytes) override;
  // Content that is all zeros, as a hole: it takes no memory.
  Result<void> append_zeros(std::uint64_t bytes);
  // Kind::invalid if the file has not exactly the pages that were described as present.
  Result<void> finish() override;

 private:
  PageWriter(Set& set, Name pagemap, UniqueFd fd, std::string file)
      : set_(&set), pagemap_(pagemap), fd_(std::move(fd)), file_(std::move(file)) {}
  Set* set_;
  Name pagemap_;
  UniqueFd fd_;
  std::string file_;
  Reservation* reserved_ = nullptr;
  std::uint64_t written_ = 0;  // bytes
  std::uint64_t present_pages_ = 0;
};

// "pages-7.img"
std::string pages_file_name(std::uint32_t pages_id);
// A new, empty one in place of whatever was there.
Result<UniqueFd> create_pages_file(int directory, const std::string& file);

}  // namespace ferry::image

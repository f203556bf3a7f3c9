// Memory that has arrived for a tree that does not exist yet.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "base/error.h"
#include "base/unique_fd.h"
#include "image/page_store.h"
#include "image/set.h"
#include "migrate/page_batch.h"

namespace ferry::migrate {

// Received pages, until the tree is grown: the pages of an image set, in a tmpfs that is mounted nowhere
// and so vanishes with the descriptor, whatever becomes of us.
class PageFiles {
 public:
  static Result<PageFiles> make();
  PageFiles(PageFiles&&) = default;
  PageFiles& operator=(PageFiles&&) = delete;

  // The pages of a pagemap have to come in order, and once.
  Result<void> keep(image::Name pagemap, std::span<const ArrivedPages> runs);
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

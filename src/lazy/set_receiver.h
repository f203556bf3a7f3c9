// The page server's work: the pages of a dump that runs elsewhere, into pagemaps and pages files of a directory.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "base/error.h"
#include "image/page_store.h"
#include "image/set.h"
#include "lazy/wire.h"

namespace ferry::lazy {

class SetReceiver {
 public:
  // `directory`: open; where pages of earlier sets are is what its link `parent` leads to.
  explicit SetReceiver(int directory) : directory_(directory) {}
  // One conversation, to its end: then all pagemaps are in the directory.
  // Errors: corrupt (a peer that breaks the protocol, or leaves before it has said that it is done), os.
  Result<void> serve(int socket);
  [[nodiscard]] std::uint64_t pages() const { return pages_; }

 private:
  Result<void> obey(int socket, const Command& command);
  Result<void> open(const Command& command);
  Result<void> add(int socket, const Command& command, std::uint32_t flags);
  Result<void> answer(int socket, const void* bytes, std::size_t size) const;
  Result<void> finish_writer();
  Result<void> save();
  [[nodiscard]] bool has_parent(image::Name pagemap) const;

  int directory_;
  image::Set set_;
  std::optional<std::uint64_t> destination_;  // what the writer is for
  std::unique_ptr<image::PageWriter> writer_;
  std::uint32_t last_pages_id_ = 0x10000;  // above those that the sender's own images may have
  std::vector<std::byte> buffer_;
  std::uint64_t pages_ = 0;
  bool done_ = false;
};

}  // namespace ferry::lazy

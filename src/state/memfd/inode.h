// One memory file: what it is, and what it holds.
#pragma once

#include <string>
#include <string_view>

#include "image/page_store.h"
#include "state/file_kind.h"

namespace ferry::state::memfd {

// Its entry in memfd.img, made on first sight.  `fd`: open for reading.
Result<const pb::MemfdInodeEntry*> describe(image::Set& set, int fd, const std::string& link,
                                            const std::string& subject);
// The pages that hold something, into pagemap-shmem-SHMID.
Result<void> save_content(DumpContext& context, const pb::MemfdInodeEntry& inode, int fd);

// A new one, filled and sealed.
Result<UniqueFd> create(const pb::MemfdInodeEntry& inode, image::PageStore& pages);

// Gives it the seals of the image that it does not have yet.
Result<void> seal(const pb::MemfdInodeEntry& inode, int fd);

}  // namespace ferry::state::memfd

#include "migrate/segments_in.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

#include "image/page_store.h"
#include "image/proto/file_kinds.pb.h"
#include "state/memfd/settled.h"

namespace ferry::migrate {
namespace {

Result<void> write_at(int fd, std::span<const std::byte> bytes, std::uint64_t at) {
  while (!bytes.empty()) {
    const ssize_t n = ::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(at));
    if (n < 0 && errno == EINTR) {
      continue;
    }
    if (n < 0) {
      return sys_fail("pwrite(shared memory that arrived)");
    }
    bytes = bytes.subspan(static_cast<std::size_t>(n));
    at += static_cast<std::uint64_t>(n);
  }
  return {};
}

}  // namespace

Result<SegmentsIn> SegmentsIn::make(const image::Set& look) {
  SegmentsIn out;
  for (const auto* inode : look.list<pb::MemfdInodeEntry>({image::Type::memfd})) {
    if (state::memfd::can_settle(*inode)) {
      FERRY_TRY(UniqueFd file, state::memfd::create_empty(*inode));
      out.files_.emplace(inode->shmid(), std::move(file));
    }
  }
  return out;
}

bool SegmentsIn::has(image::Name pagemap) const {
  return pagemap.type == image::Type::pagemap_shmem && files_.contains(static_cast<std::uint32_t>(pagemap.id));
}

Result<void> SegmentsIn::put(image::Name pagemap, std::span<const ArrivedPages> runs) const {
  const int fd = files_.at(static_cast<std::uint32_t>(pagemap.id)).get();
  for (const ArrivedPages& run : runs) {
    if (!run.zeros) {
      FERRY_CHECK(write_at(fd, run.content, run.vaddr));
    } else if (::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(run.vaddr),
                           static_cast<off_t>(run.pages * image::kPageSize)) != 0) {
      return sys_fail("fallocate(shared memory that arrived, PUNCH_HOLE)");
    }
  }
  return {};
}

std::vector<state::InheritFd> SegmentsIn::handed_in() const {
  std::vector<state::InheritFd> out;
  for (const auto& [shmid, file] : files_) {
    out.push_back({state::memfd::settled_key(shmid), file.get()});
  }
  return out;
}

}  // namespace ferry::migrate

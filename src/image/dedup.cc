#include "image/dedup.h"

#include <fcntl.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "image/page_store.h"
#include "image/proto/mm.pb.h"
#include "image/set.h"
#include "sys/file.h"

namespace ferry::image {
namespace {

// Of what is stored for one pagemap, the part in [start, end).
Result<void> punch(const Extent& extent, std::uint64_t start, std::uint64_t end, std::uint64_t& pages) {
  if (extent.fd < 0 || start >= end) {
    return {};
  }
  // The store has its files open for reading.
  FERRY_TRY(const UniqueFd file, sys::open(fmt::format("/proc/self/fd/{}", extent.fd), O_RDWR));
  const auto offset = static_cast<off_t>(extent.offset + (start - extent.vaddr));
  if (::fallocate(file.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, static_cast<off_t>(end - start)) !=
      0) {
    return sys_fail(fmt::format("fallocate(a pages file, punch {} bytes at {})", end - start, offset));
  }
  pages += (end - start) / kPageSize;
  return {};
}

std::uint64_t end_of(const Extent& e) { return e.vaddr + e.page_count * kPageSize; }

std::vector<Name> pagemaps_of(const Set& set) {
  std::vector<Name> out = set.names(Type::pagemap);
  const auto shared = set.names(Type::pagemap_shmem);
  out.insert(out.end(), shared.begin(), shared.end());
  return out;
}

Result<std::uint64_t> punch(const Set& own, const Set& above, int parent) {
  std::uint64_t pages = 0;
  FERRY_TRY(auto store, PageStore::open(above, parent));
  for (const Name name : pagemaps_of(own)) {
    if (!above.has(name)) {
      continue;
    }
    FERRY_TRY(const auto extents, store.extents(name));
    for (const auto* entry : own.list<pb::PagemapEntry>(name)) {
      if ((entry->flags() & kPresent) == 0) {
        continue;
      }
      const std::uint64_t start = entry->vaddr();
      const std::uint64_t end = start + entry->nr_pages() * kPageSize;
      auto extent = std::lower_bound(extents.begin(), extents.end(), start,
                                     [](const Extent& e, std::uint64_t at) { return end_of(e) <= at; });
      for (; extent != extents.end() && extent->vaddr < end; ++extent) {
        FERRY_CHECK(punch(*extent, std::max(start, extent->vaddr), std::min(end, end_of(*extent)), pages)
                        .during("taking out of the parent what {} has anew", file_name(name)));
      }
    }
  }
  return pages;
}

Result<Set> load_pagemaps(int directory) {
  constexpr std::uint32_t kVersion = 2;  // a page server's own
  Set out;
  FERRY_TRY(const auto files, sys::list_directory(directory, "."));
  for (const std::string& file : files) {
    const auto name = parse_file_name(file);  // pages files and the link to the parent have no name of this kind
    if (name.has_value() && (name->type == Type::pagemap || name->type == Type::pagemap_shmem)) {
      FERRY_TRY(std::string bytes, sys::read_file_at(directory, file));
      FERRY_CHECK(decode_file(out, *name, std::move(bytes), kVersion));
    }
  }
  return out;
}

template <class Load>
Result<std::uint64_t> punch_parent_of(int directory, Load load_set) {
  const auto parent = sys::open_at(directory, "parent", O_RDONLY | O_DIRECTORY);
  if (!parent.has_value()) {
    return parent.error().kind == Kind::gone ? Result<std::uint64_t>(0)
                                             : Result<std::uint64_t>(tl::unexpect, parent.error());
  }
  FERRY_TRY(const Set own, load_set(directory));
  FERRY_TRY(const Set above, load_set(parent->get()));
  return punch(own, above, parent->get());
}

}  // namespace

Result<std::uint64_t> punch_parents(int directory) {
  return punch_parent_of(directory, [](int of) { return load(of, Accept::pre_dump); });
}

Result<std::uint64_t> punch_received(int directory) { return punch_parent_of(directory, load_pagemaps); }

Result<std::uint64_t> punch_all(int directory) {
  std::uint64_t pages = 0;
  FERRY_TRY(const Set set, load(directory));
  FERRY_TRY(auto store, PageStore::open(set, directory));
  for (const Name name : pagemaps_of(set)) {
    FERRY_TRY(const auto extents, store.extents(name));
    for (const Extent& extent : extents) {
      FERRY_CHECK(
          punch(extent, extent.vaddr, end_of(extent), pages).during("taking out what {} told of", file_name(name)));
    }
  }
  return pages;
}

}  // namespace ferry::image

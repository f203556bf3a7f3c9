#include "migrate/pages.h"

#include "sys/mount_api.h"

namespace ferry::migrate {

using image::kPageSize;

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

Result<void> PageFiles::keep(image::Name pagemap, std::span<const ArrivedPages> runs) {
  if (!writer_ || pagemap != current_) {
    FERRY_CHECK(begin(pagemap));
  }
  for (const ArrivedPages& run : runs) {
    writer_->describe(run.vaddr, run.pages, image::kPresent);
    FERRY_CHECK(run.zeros ? writer_->append_zeros(run.pages * kPageSize) : writer_->append(run.content));
  }
  return {};
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

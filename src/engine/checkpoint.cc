#include "engine/checkpoint.h"

#include "engine/checkpoint_story.h"
#include "engine/rehearsal.h"
#include "image/page_store.h"

namespace ferry::engine {
namespace {

using image::Name;

// A directory of images.
class Directory final : public Keeper {
 public:
  explicit Directory(int directory) : directory_(directory) {}
  Result<std::unique_ptr<image::PageSink>> pages(image::Set& set, Name pagemap) override {
    FERRY_TRY(auto writer, image::PageWriter::create(set, pagemap, directory_, ++last_pages_id_));
    return std::make_unique<image::PageWriter>(std::move(writer));
  }
  Result<void> images(const image::Set& set) override { return image::save(set, directory_); }

 private:
  int directory_;
  std::uint32_t last_pages_id_ = 0;  // one counter for all pages-N.img of a set
};

}  // namespace

Result<DumpReport> checkpoint(const DumpOptions& options, Listener& listener) {
  rehearse(options);
  Directory directory(options.images_dir);
  return checkpoint(options, listener, directory);
}

Result<DumpReport> checkpoint(const DumpOptions& options, Listener& listener, Keeper& keeper) {
  return CheckpointStory(options, listener, keeper).run();
}

}  // namespace ferry::engine

#include "engine/checkpoint.h"

#include <unistd.h>

#include <algorithm>

#include "base/log.h"
#include "engine/checkpoint_story.h"
#include "engine/page_server_keeper.h"
#include "engine/rehearsal.h"
#include "image/dedup.h"
#include "image/page_store.h"
#include "sys/host.h"

namespace ferry::engine {
namespace {

using image::Name;

// A directory of images.
class Directory final : public Keeper {
 public:
  // `few_pages`: most memory stays where it is, so no room is made for it.
  Directory(int directory, bool few_pages) : directory_(directory), few_pages_(few_pages) {}
  Directory(const Directory&) = delete;
  Directory& operator=(const Directory&) = delete;
  Result<void> expect(std::span<const std::uint64_t> memory) override {
    if (few_pages_) {
      return {};
    }
    FERRY_TRY(const std::uint64_t available, sys::available_memory());
    std::uint64_t left = available / kShareOfMemory;
    for (const std::uint64_t bytes : memory) {
      const auto id = static_cast<std::uint32_t>(reserved_.size() + 1);
      FERRY_TRY(auto room, image::Reservation::make(directory_, id, std::min(bytes + kMargin, left)));
      left -= std::min(bytes + kMargin, left);
      reserved_.push_back(std::move(room));
    }
    return {};
  }
  Result<std::unique_ptr<image::PageSink>> pages(image::Set& set, Name pagemap) override {
    if (last_pages_id_ < reserved_.size()) {
      image::Reservation& room = reserved_[last_pages_id_];
      return std::make_unique<image::PageWriter>(image::PageWriter::create(set, pagemap, room, ++last_pages_id_));
    }
    FERRY_TRY(auto writer, image::PageWriter::create(set, pagemap, directory_, ++last_pages_id_));
    return std::make_unique<image::PageWriter>(std::move(writer));
  }
  Result<void> images(const image::Set& set) override {
    while (reserved_.size() > last_pages_id_) {
      forget_last();
    }
    FERRY_CHECK(image::save(set, directory_));
    complete_ = true;
    return {};
  }
  // What a failed checkpoint reserved would be the largest part of what it leaves.
  ~Directory() override {
    while (!complete_ && !reserved_.empty()) {
      forget_last();
    }
  }

 private:
  void forget_last() {
    const std::string file = image::pages_file_name(static_cast<std::uint32_t>(reserved_.size()));
    (void)::unlinkat(directory_, file.c_str(), 0);
    reserved_.pop_back();
  }

  // What is mapped ahead takes page cache: it must not press out what the host works with.
  static constexpr std::uint64_t kShareOfMemory = 4;
  // The vDSO, and what the kernel's counters may be behind by.
  static constexpr std::uint64_t kMargin = 64 << 10;

  int directory_;
  bool few_pages_;
  std::vector<image::Reservation> reserved_;  // for pages-1.img and on
  bool complete_ = false;
  std::uint32_t last_pages_id_ = 0;  // one counter for all pages-N.img of a set
};

}  // namespace

Result<DumpReport> checkpoint(const DumpOptions& options, Listener& listener) {
  // Before the rehearsal: what of our memory they share until one of us writes is then ours alone in the freeze.
  FERRY_TRY(auto caretaker, Caretaker::start());
  if (options.page_server.has_value() && !options.lazy_pages) {
    FERRY_TRY(const auto keeper, PageServerKeeper::open(*options.page_server, options.images_dir));
    rehearse(options);
    return CheckpointStory(options, listener, *keeper, std::move(caretaker)).run();
  }
  rehearse(options);
  Directory directory(options.images_dir, options.lazy_pages);
  auto report = CheckpointStory(options, listener, directory, std::move(caretaker)).run();
  if (report.has_value() && options.auto_dedup) {
    // The set is complete and good as it is; the room is worth a warning.
    if (const auto punched = image::punch_parents(options.images_dir); !punched.has_value()) {
      log::warning("the parent sets keep their room: {}", punched.error().message());
    }
  }
  return report;
}

Result<DumpReport> checkpoint(const DumpOptions& options, Listener& listener, Keeper& keeper) {
  FERRY_TRY(auto caretaker, Caretaker::start());
  return CheckpointStory(options, listener, keeper, std::move(caretaker)).run();
}

}  // namespace ferry::engine

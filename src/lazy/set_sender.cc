#include "lazy/set_sender.h"

#include <algorithm>
#include <deque>

#include "image/page_store.h"
#include "sys/file.h"

namespace ferry::lazy {
namespace {

class Sink final : public image::PageSink {
 public:
  Sink(int socket, image::Name pagemap, bool has_parent)
      : socket_(socket), pagemap_(pagemap), has_parent_(has_parent) {}

  void describe(std::uint64_t vaddr, std::uint64_t page_count, std::uint32_t flags) override {
    if (page_count != 0) {
      ranges_.push_back({vaddr, page_count, flags});
    }
  }

  Result<void> append(std::span<const std::byte> pages) override {
    while (!pages.empty()) {
      FERRY_CHECK(send_ranges_without_content());
      if (ranges_.empty()) {
        return fail(Kind::invalid, "{} bytes of {} belong to no range", pages.size(), image::file_name(pagemap_));
      }
      Range& range = ranges_.front();
      const std::uint64_t count = std::min<std::uint64_t>(range.pages, pages.size() / image::kPageSize);
      const auto bytes = static_cast<std::size_t>(count * image::kPageSize);
      FERRY_CHECK(send_range({range.vaddr, count, range.flags}, pages.first(bytes)));
      pages = pages.subspan(bytes);
      range.vaddr += bytes;
      range.pages -= count;
      if (range.pages == 0) {
        ranges_.pop_front();
      }
    }
    return {};
  }

  Result<void> finish() override {
    FERRY_CHECK(send_ranges_without_content());
    if (!ranges_.empty()) {
      return fail(Kind::invalid, "{} pages at {:#x} of {} have no content", ranges_.front().pages,
                  ranges_.front().vaddr, image::file_name(pagemap_));
    }
    return {};
  }

 private:
  struct Range {
    std::uint64_t vaddr, pages;
    std::uint32_t flags;
  };

  Result<void> send_range(const Range& range, std::span<const std::byte> content) {
    if ((range.flags & image::kInParent) != 0 && !has_parent_) {
      return fail(Kind::unsupported,
                  "the page server has no parent set with {}: give it the --prev-images-dir that the "
                  "dump has",
                  image::file_name(pagemap_));
    }
    Command command = lazy::command(Verb::add_f, destination_of(pagemap_));
    command.flags = static_cast<std::uint16_t>(range.flags);
    command.pages = range.pages;
    command.vaddr = range.vaddr;
    return send(socket_, command, content);
  }
  Result<void> send_ranges_without_content() {
    while (!ranges_.empty() && (ranges_.front().flags & image::kPresent) == 0) {
      FERRY_CHECK(send_range(ranges_.front(), {}));
      ranges_.pop_front();
    }
    return {};
  }

  int socket_;
  image::Name pagemap_;
  bool has_parent_;
  std::deque<Range> ranges_;  // whose content has not come yet
};

}  // namespace

Result<std::unique_ptr<image::PageSink>> SetSender::open(image::Name pagemap) {
  FERRY_CHECK(send(socket_.get(), command(Verb::open2, destination_of(pagemap))));
  std::uint8_t has_parent = 0;
  FERRY_CHECK(sys::read_exactly(socket_.get(), &has_parent, sizeof has_parent, "the page server's answer"));
  return std::make_unique<Sink>(socket_.get(), pagemap, has_parent != 0);
}

Result<void> SetSender::close() {
  FERRY_CHECK(send(socket_.get(), command(given_ ? Verb::force_close : Verb::close)));
  std::int32_t status = 0;
  FERRY_CHECK(sys::read_exactly(socket_.get(), &status, sizeof status, "the page server's last answer"));
  if (status != 0) {
    return fail(Kind::os, "the page server could not keep what it got (status {})", status);
  }
  return {};
}

}  // namespace ferry::lazy

#include "engine/page_server_keeper.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

#include "image/page_store.h"
#include "image/proto/mm.pb.h"
#include "lazy/endpoint.h"
#include "state/memory/increment.h"
#include "sys/file.h"

namespace ferry::engine {
namespace {

using image::Name;
using image::Type;

// Notes what it lets pass.
class NotingSink final : public image::PageSink {
 public:
  NotingSink(std::unique_ptr<image::PageSink> to, image::Set& sent, Name pagemap)
      : to_(std::move(to)), sent_(sent), pagemap_(pagemap) {}
  void describe(std::uint64_t vaddr, std::uint64_t page_count, std::uint32_t flags) override {
    pb::PagemapEntry entry;
    entry.set_vaddr(vaddr);
    entry.set_compat_nr_pages(0);
    entry.set_flags(flags);
    entry.set_nr_pages(page_count);
    sent_.add(pagemap_, std::move(entry));
    to_->describe(vaddr, page_count, flags);
  }
  Result<void> append(std::span<const std::byte> pages) override { return to_->append(pages); }
  Result<void> finish() override { return to_->finish(); }

 private:
  std::unique_ptr<image::PageSink> to_;
  image::Set& sent_;
  Name pagemap_;
};

}  // namespace

Result<std::unique_ptr<PageServerKeeper>> PageServerKeeper::open(const state::PageServerPlace& place, int directory) {
  FERRY_TRY(auto socket, lazy::connect_to(place).during("reaching the page server"));
  return std::unique_ptr<PageServerKeeper>(
      new PageServerKeeper(lazy::SetSender(std::move(socket), place.socket >= 0), directory));
}

Result<std::unique_ptr<image::PageSink>> PageServerKeeper::pages(image::Set& set, Name pagemap) {
  (void)set;  // the server writes the pagemap
  FERRY_TRY(auto sink, sender_.open(pagemap).during("sending {} to the page server", image::file_name(pagemap)));
  if (pagemap.type != Type::pagemap) {
    return sink;  // of shared memory nothing is left to a parent
  }
  pb::PagemapHead head;
  head.set_pages_id(0);
  sent_.add(pagemap, std::move(head));
  return std::make_unique<NotingSink>(std::move(sink), sent_, pagemap);
}

Result<void> PageServerKeeper::images(const image::Set& set) {
  FERRY_CHECK(sender_.close().during("ending the conversation with the page server"));
  for (const Name name : sent_.names()) {
    FERRY_TRY(const std::string bytes, image::encode_file(sent_, name));
    const std::string file = state::memory::sent_file_name(NsPid(static_cast<pid_t>(name.id)));
    if (::unlinkat(directory_, file.c_str(), 0) != 0 && errno != ENOENT) {
      return sys_fail(fmt::format("unlinkat({})", file));
    }
    FERRY_TRY(const UniqueFd out, sys::open_at(directory_, file, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0644));
    FERRY_CHECK(sys::write_all(out.get(), bytes.data(), bytes.size(), file));
  }
  return image::save(set, directory_);
}

}  // namespace ferry::engine

#include "engine/page_server_keeper.h"

#include "lazy/endpoint.h"

namespace ferry::engine {

Result<std::unique_ptr<PageServerKeeper>> PageServerKeeper::open(const state::PageServerPlace& place, int directory) {
  FERRY_TRY(auto socket, lazy::connect_to(place).during("reaching the page server"));
  return std::unique_ptr<PageServerKeeper>(
      new PageServerKeeper(lazy::SetSender(std::move(socket), place.socket >= 0), directory));
}

Result<std::unique_ptr<image::PageSink>> PageServerKeeper::pages(image::Set& set, image::Name pagemap) {
  (void)set;  // the server writes the pagemap
  return sender_.open(pagemap).during("sending {} to the page server", image::file_name(pagemap));
}

Result<void> PageServerKeeper::images(const image::Set& set) {
  FERRY_CHECK(sender_.close().during("ending the conversation with the page server"));
  return image::save(set, directory_);
}

}  // namespace ferry::engine

// A checkpoint whose pages go to a page server, and everything else into a directory.
#pragma once

#include <memory>
#include <optional>

#include "engine/keeper.h"
#include "lazy/set_sender.h"
#include "state/options.h"

namespace ferry::engine {

class PageServerKeeper final : public Keeper {
 public:
  // Connects.  Errors: as lazy::connect_to.
  static Result<std::unique_ptr<PageServerKeeper>> open(const state::PageServerPlace& place, int directory);
  Result<std::unique_ptr<image::PageSink>> pages(image::Set& set, image::Name pagemap) override;
  // After the server has said that it has all pages: a set with an inventory is a whole one.
  Result<void> images(const image::Set& set) override;

 private:
  PageServerKeeper(lazy::SetSender sender, int directory) : sender_(std::move(sender)), directory_(directory) {}
  lazy::SetSender sender_;
  image::Set sent_;  // what of each process the server has, for the next set (state/memory/increment.h)
  int directory_;
};

}  // namespace ferry::engine

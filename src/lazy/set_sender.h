// The other end of a page server: pages of a dump into a connection.
#pragma once

#include <memory>

#include "base/error.h"
#include "base/unique_fd.h"
#include "image/page_sink.h"
#include "image/set.h"
#include "lazy/wire.h"

namespace ferry::lazy {

class SetSender {
 public:
  // `given`: the connection was made by somebody else, who may use it again.
  SetSender(UniqueFd socket, bool given) : socket_(std::move(socket)), given_(given) {}
  // Pages of one pagemap; to be finished before the next one is opened.  The sender has to outlive it.
  Result<std::unique_ptr<image::PageSink>> open(image::Name pagemap);
  // Waits until the server has everything in its files.  Errors: os (it could not write it).
  Result<void> close();

 private:
  UniqueFd socket_;
  bool given_;
};

}  // namespace ferry::lazy

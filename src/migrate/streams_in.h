// The destination's end of the connections beside the remote shell.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "base/error.h"
#include "migrate/link.h"
#include "migrate/page_intake.h"

namespace ferry::migrate {

namespace wire {
class Streams;
}

class StreamsIn {
 public:
  explicit StreamsIn(Link& control) : control_(control) {}

  // Listens for what the source asks, and tells it where.  That no connection comes about is no error.
  Result<void> open(const wire::Streams& wanted);
  // The connections, for whoever goes on with them in its own way; none if there are none.
  [[nodiscard]] std::vector<Link> take() { return std::exchange(links_, {}); }
  // Where the source sends streams of bytes, while it sends no pages.
  [[nodiscard]] Link& bulk() { return links_.empty() ? control_ : links_.front(); }

  // Pages may come from now on; `take` is called by several threads.  A failure of theirs interrupts whoever
  // waits for the control connection.
  Result<void> begin_pages(TakePages take);
  Result<void> wait_for(std::uint64_t mark) { return intake_ == nullptr ? Result<void>() : intake_->wait_for(mark); }
  Result<void> end_pages(std::uint64_t mark);
  // The move has failed: no thread goes on, and the control connection can be waited for again.  The value is what
  // really happened, if a failure with pages was seen as something else by others.
  Error break_off(Error error);

 private:
  Link& control_;
  std::vector<Link> links_;
  std::unique_ptr<PageIntake> intake_;
};

}  // namespace ferry::migrate

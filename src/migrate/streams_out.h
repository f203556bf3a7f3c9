// The source's end of the connections beside the remote shell.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "migrate/link.h"
#include "migrate/pace.h"
#include "migrate/page_streams.h"

namespace ferry::migrate {

struct StreamOptions {
  bool tunnel = false;          // everything through the remote shell
  unsigned count = 2;           // of direct connections
  std::string address;          // at which the destination is reached; empty: as the remote shell reached it
  std::uint16_t port = 0;       // 0: any that is free there
  std::uint64_t bandwidth = 0;  // bytes per second at most; 0: as many as there can be
  bool compress = false;        // memory
};

class StreamsOut {
 public:
  StreamsOut(Link& control, const StreamOptions& options);

  // Connects.  The value is empty, or why everything goes through the remote shell although that was not asked
  // for.
  Result<std::string> open();
  [[nodiscard]] std::size_t count() const { return direct_.size(); }
  // The connections, for whoever goes on with them in its own way; none if there are none.
  [[nodiscard]] std::vector<Link> take() { return std::exchange(direct_, {}); }
  // For streams of bytes, while no pages are sent.
  [[nodiscard]] Link& bulk() { return direct_.empty() ? control_ : direct_.front(); }
  // Pages may be sent from here to the last mark.
  void begin_pages() { pages_ = std::make_unique<PageStreams>(control_, direct_, options_.compress); }
  [[nodiscard]] PageStreams& pages() { return *pages_; }
  // The tree is about to be stopped: nothing is held back any more.
  void hurry();
  // By all connections together, when no pages are on their way.
  [[nodiscard]] std::uint64_t sent() const;

 private:
  Link& control_;
  StreamOptions options_;
  std::shared_ptr<Pace> pace_;
  std::vector<Link> direct_;
  std::unique_ptr<PageStreams> pages_;  // uses those above
};

}  // namespace ferry::migrate

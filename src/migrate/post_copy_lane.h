// Pages that the destination fetches from the frozen tree on the source, over one connection.
//
// Every question (Want) is answered by one batch that has all of its pages; answers come in the order of the
// questions.  A lane outlives its connection: when that breaks, everything has to be asked for anew, over the next one.
#pragma once

#include <chrono>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"
#include "lazy/page_source.h"
#include "migrate/link.h"
#include "migrate/page_batch.h"

namespace ferry::migrate {

// One thread uses it: the one that runs the fault server.
class PostCopyLane final : public lazy::PageSource {
 public:
  // `obliged`: it is asked also while it has no connection; who waits for its pages waits for the next one.
  static Result<std::unique_ptr<PostCopyLane>> make(bool obliged);

  // Goes on over this connection, in the place of the one before.
  void connect(Link link);
  // To be called about once a second: tells the source that we live, and finds out that it is silent.
  void beat();
  // The source learns that it is not needed any more.
  void tell_all_here();
  [[nodiscard]] bool connected() const { return link_.has_value() && !broken_.has_value(); }

  [[nodiscard]] std::uint64_t covers(const Range& range) const override;
  Result<void> ask(const Range& range) override;
  Result<std::optional<Piece>> take() override;
  // Its own, whatever the connection is.
  [[nodiscard]] int descriptor() const override { return poll_.get(); }
  [[nodiscard]] bool pending() const override { return !pieces_.empty() || (link_.has_value() && link_->pending()); }
  // Errors: gone, while there is no new connection.
  Result<void> recover() override;

 private:
  using Clock = std::chrono::steady_clock;
  PostCopyLane() = default;
  void install(Link link);
  void drop();
  // The next take() says so.
  void doubt(std::string why);
  Result<void> send(const wire::Message& message);
  Result<void> say();
  [[nodiscard]] bool takes_more() const;
  void wait_until_it_takes_more(bool wanted);
  Result<void> accept(image::Name name, std::span<const ArrivedPages> runs);

  bool obliged_ = false;
  UniqueFd poll_;  // epoll: the connection's descriptor and kick_
  UniqueFd kick_;
  std::optional<Link> link_, next_;
  bool lost_ = false;  // the server knows that there is no connection
  std::optional<std::string> broken_;
  std::deque<Range> asked_;
  std::deque<Range> unsaid_;  // the last ones of these: the connection took no more when they were asked
  UniqueFd out_;              // of the connection, in poll_ while something is unsaid
  std::vector<std::byte> body_;
  BatchReader reader_;
  std::deque<Piece> pieces_;  // of the batch in body_
  Clock::time_point heard_{}, said_{};
};

}  // namespace ferry::migrate

// Pages that arrive over direct connections, each read by a thread of its own, which also puts them where
// they belong.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"
#include "migrate/link.h"
#include "migrate/page_batch.h"

namespace ferry::migrate {

class PageIntake {
 public:
  // `take` is called by all threads at the same time.  `links` have to outlive this, and belong to it until
  // finish().
  static Result<std::unique_ptr<PageIntake>> start(std::vector<Link>& links, TakePages take);
  PageIntake(const PageIntake&) = delete;
  PageIntake& operator=(const PageIntake&) = delete;
  // Hangs up if it was not finished.
  ~PageIntake();

  // Until a mark has come over every connection.
  Result<void> wait_for(std::uint64_t mark);
  // The same with the last mark; then the threads end, and the connections are the caller's again.
  Result<void> finish(std::uint64_t mark);
  // Becomes readable when pages could not be taken: the source has to be told.
  [[nodiscard]] int failed() const { return failed_.get(); }
  [[nodiscard]] Result<void> failure();

 private:
  struct Stream {
    Link* link = nullptr;
    std::uint64_t mark = 0;  // the last one that came
    bool ended = false;      // by its last mark
    std::thread thread;
  };
  PageIntake(TakePages take, UniqueFd failed) : take_(std::move(take)), failed_(std::move(failed)) {}
  void run(Stream& stream);
  Result<void> read(Stream& stream);
  Result<void> await(std::uint64_t mark, bool last);

  TakePages take_;
  UniqueFd failed_;
  std::mutex lock_;  // of what follows
  std::condition_variable changed_;
  std::vector<std::unique_ptr<Stream>> streams_;
  Result<void> failure_;
};

}  // namespace ferry::migrate

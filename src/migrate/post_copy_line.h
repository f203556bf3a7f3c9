// The source's connections for pages that are fetched after the hand-over: made, served, and made anew when they break.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"
#include "migrate/link.h"
#include "migrate/post_copy_supply.h"
#include "migrate/remote_shell.h"
#include "migrate/streams_out.h"

namespace ferry::migrate {

// By which other way the destination of a move is to be reached, if the user said so (`ferry resume --via`).  It is
// written where the process that has the move in hand looks for it, before every try.
Result<void> write_detour(const std::string& move, const std::string& destination);
std::string read_detour(const std::string& move);
void forget_detour(const std::string& move);

class PostCopyLine {
 public:
  struct Way {
    std::string move;
    std::string destination;
    std::string rsh;
    StreamOptions streams;
  };
  // `supply` has to outlive it.
  PostCopyLine(Way way, const PostCopySupply& supply) : way_(std::move(way)), supply_(supply) {}
  PostCopyLine(const PostCopyLine&) = delete;
  PostCopyLine& operator=(const PostCopyLine&) = delete;
  ~PostCopyLine();  // hangs up

  // The first connections; from now on a thread serves them, and makes them anew.  The value is empty, or why pages go
  // through the remote shell although that was not asked for.
  Result<std::string> open();

  struct Standing {
    bool connected = false;
    bool complete = false;         // the destination has everything
    std::string trouble;           // why there is no connection
    std::chrono::seconds since{};  // it broke
  };
  // Until everything was fetched.  `tell` is called about once a second, and at each change.
  // Errors: of `tell`, which may give up waiting.
  Result<void> wait(const std::function<Result<void>(const Standing&)>& tell);

 private:
  using Clock = std::chrono::steady_clock;
  struct Session {
    RemoteShell shell;
    std::unique_ptr<Link> control;
    std::vector<Link> direct;
    std::string why_not_direct;
    bool complete = false;  // there is nothing left to do
  };
  Result<std::unique_ptr<Session>> connect() const;
  // Returns when the destination has everything, or a connection broke.
  Result<void> serve(Session& session);
  void keep(std::unique_ptr<Session> session);
  [[nodiscard]] bool rest();

  Way way_;
  const PostCopySupply& supply_;
  UniqueFd interrupt_;  // readable: nobody waits for a connection any more
  std::mutex lock_;     // of what follows
  std::condition_variable changed_;
  bool connected_ = false;
  bool complete_ = false;
  bool stopping_ = false;
  std::string trouble_;
  Clock::time_point broke_{};
  std::thread keeper_;  // last: it uses all of the above
};

}  // namespace ferry::migrate

// The destination's memory after it took a tree: what is missing is fetched from the source while the tree runs.
//
// One thread serves the faults (lazy/fault_server.h); another one, the doorman, lets connections in, the first ones
// and those that follow when they have broken.  Whoever needs a page while there is no connection waits.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"
#include "engine/latecomers.h"
#include "lazy/fault_server.h"
#include "migrate/link.h"
#include "migrate/post_copy_lane.h"
#include "migrate/post_copy_warden.h"

namespace ferry::migrate {

class PostCopyIntake final : public engine::Latecomers {
 public:
  // `freeze_cgroup`: of the tree, which must not go on if this process is killed before everything is here.
  static Result<std::unique_ptr<PostCopyIntake>> open(const std::string& move, const std::string& freeze_cgroup,
                                                      std::string peer);
  PostCopyIntake(const PostCopyIntake&) = delete;
  PostCopyIntake& operator=(const PostCopyIntake&) = delete;
  ~PostCopyIntake() override;

  // By the thread that builds the tree.
  Result<void> await(NsPid pid, UniqueFd uffd, const std::vector<sys::PageRange>& missing) override;
  // No process comes any more.
  Result<void> tree_is_complete();
  // From here on a connection that broke is waited for, however long; until then, only for seconds.
  // Errors: why pages cannot be brought; then the tree must not run.
  Result<void> taken();

  struct Standing {
    std::uint64_t missing_bytes = 0;
    bool connected = false;
    bool ended = false;
  };
  [[nodiscard]] Standing standing() const { return {missing_bytes_, connected_, ended_}; }
  // Becomes readable at the end.
  [[nodiscard]] int end() const { return end_.get(); }
  // After result(): the source may let its memory go.
  void tell_source();
  // After the end.  Errors: why memory has not all come; the server has ended, and the tree with it.
  Result<lazy::FaultReport> result();

 private:
  using Clock = std::chrono::steady_clock;
  struct Newcomer {
    NsPid pid;
    UniqueFd uffd;
    lazy::Missing missing;
  };
  // What a `ferry receive` that brings a connection has to be kept for: it lives as long as its socket is open.
  struct Session {
    UniqueFd bringer;
    std::unique_ptr<Link> control;
    std::vector<Link> direct;
  };
  PostCopyIntake(PostCopyWarden warden, std::string peer) : warden_(std::move(warden)), peer_(std::move(peer)) {}
  void serve();
  Result<bool> wake_up();
  void let_in(Session session);
  Result<void> check_patience();
  void guard_door();
  Result<Session> greet(UniqueFd bringer) const;
  void stop();

  PostCopyWarden warden_;
  std::string peer_;
  std::string path_;  // of listener_
  UniqueFd listener_;
  UniqueFd wake_, end_, stop_;
  std::unique_ptr<PostCopyLane> background_, faults_;
  std::atomic<bool> taken_{false}, connected_{false}, ended_{false};
  std::atomic<std::uint64_t> missing_bytes_{0};
  std::mutex lock_;  // of what follows
  std::vector<Newcomer> newcomers_;
  std::condition_variable accepted_;
  std::size_t not_accepted_ = 0;  // newcomers that the server does not hold yet
  std::vector<Session> sessions_;
  bool complete_ = false, stopping_ = false, beat_ = false;
  Result<void> served_;
  // Of the thread that serves.
  std::unique_ptr<lazy::FaultServer> server_;
  std::optional<Session> session_;
  std::optional<Clock::time_point> lost_since_;
  lazy::FaultReport report_;
  std::thread server_thread_, doorman_;
};

}  // namespace ferry::migrate

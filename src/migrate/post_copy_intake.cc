#include "migrate/post_copy_intake.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <utility>

#include "base/log.h"
#include "migrate/message.pb.h"
#include "migrate/post_copy_door.h"
#include "migrate/streams_in.h"

namespace ferry::migrate {
namespace {

constexpr std::chrono::milliseconds kBeat(1000);
// While the tree is still the source's to keep, it is better given back than waited for.
constexpr std::chrono::seconds kPatience(8);
constexpr std::chrono::seconds kGreeting(20);

Result<UniqueFd> make_eventfd() {
  UniqueFd out(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  return out ? Result<UniqueFd>(std::move(out)) : Result<UniqueFd>(sys_fail("eventfd"));
}

}  // namespace

Result<std::unique_ptr<PostCopyIntake>> PostCopyIntake::open(const std::string& move, const std::string& freeze_cgroup,
                                                             std::string peer) {
  FERRY_TRY(auto warden, PostCopyWarden::post(freeze_cgroup));
  auto out = std::unique_ptr<PostCopyIntake>(new PostCopyIntake(std::move(warden), std::move(peer)));
  FERRY_TRY(out->wake_, make_eventfd());
  FERRY_TRY(out->end_, make_eventfd());
  FERRY_TRY(out->stop_, make_eventfd());
  FERRY_TRY(out->background_, PostCopyLane::make(true));
  FERRY_TRY(out->faults_, PostCopyLane::make(false));
  out->path_ = door_path(move);
  FERRY_TRY(out->listener_, open_door(out->path_));
  PostCopyIntake& it = *out;
  it.server_ = std::make_unique<lazy::FaultServer>();
  it.server_->add_source(*it.background_, lazy::Lane::background);
  it.server_->add_source(*it.faults_, lazy::Lane::faults);
  it.server_->watch_descriptors([&it](int uffd, bool held) {
    auto told = held ? it.warden_.hold(uffd) : it.warden_.drop(uffd);
    if (!told) {
      log::error(told.error());
    }
    (void)::eventfd_write(it.wake_.get(), 1);  // it may have been the last one
  });
  FERRY_CHECK(it.server_->watch(it.wake_.get(), [&it] { return it.wake_up(); }));
  it.server_thread_ = std::thread([&it] { it.serve(); });
  it.doorman_ = std::thread([&it] { it.guard_door(); });
  return out;
}

PostCopyIntake::~PostCopyIntake() {
  stop();
  if (!path_.empty()) {
    ::unlink(path_.c_str());
  }
}

void PostCopyIntake::stop() {
  {
    const std::lock_guard<std::mutex> held(lock_);
    stopping_ = true;
  }
  for (const UniqueFd* const fd : {&wake_, &stop_}) {
    if (*fd) {
      (void)::eventfd_write(fd->get(), 1);
    }
  }
  for (std::thread* const thread : {&server_thread_, &doorman_}) {
    if (thread->joinable()) {
      thread->join();
    }
  }
}

Result<void> PostCopyIntake::await(NsPid pid, UniqueFd uffd, const std::vector<sys::PageRange>& missing) {
  Newcomer newcomer{pid, std::move(uffd), {}};
  for (const sys::PageRange& range : missing) {
    newcomer.missing.add(range.start, range.end);
  }
  std::unique_lock<std::mutex> held(lock_);
  FERRY_CHECK(served_);
  missing_bytes_ += newcomer.missing.bytes();
  newcomers_.push_back(std::move(newcomer));
  ++not_accepted_;
  (void)::eventfd_write(wake_.get(), 1);
  // The warden has to hold it before the tree may outlive us.
  accepted_.wait(held, [this] { return not_accepted_ == 0; });
  return served_;
}

Result<void> PostCopyIntake::tree_is_complete() {
  const std::lock_guard<std::mutex> held(lock_);
  FERRY_CHECK(served_);
  complete_ = true;
  (void)::eventfd_write(wake_.get(), 1);
  return {};
}

Result<void> PostCopyIntake::taken() {
  taken_ = true;
  const std::lock_guard<std::mutex> held(lock_);
  return served_;
}

void PostCopyIntake::tell_source() {
  background_->tell_all_here();
  faults_->tell_all_here();
}

Result<lazy::FaultReport> PostCopyIntake::result() {
  stop();
  const std::lock_guard<std::mutex> held(lock_);
  FERRY_CHECK(served_);
  return report_;
}

void PostCopyIntake::serve() {
  sigset_t all;
  sigfillset(&all);
  ::pthread_sigmask(SIG_BLOCK, &all, nullptr);
  auto served = server_->run();
  report_ = server_->report();
  {
    const std::lock_guard<std::mutex> held(lock_);
    served_ = std::move(served);
    // Whoever builds the tree and waits for a page has to be let go; a tree that runs already ends instead.
    if (served_ || !taken_) {
      newcomers_.clear();
      if (auto dropped = warden_.drop_all(); !dropped) {
        log::error(dropped.error());
      }
      server_.reset();
    }
    not_accepted_ = 0;
    accepted_.notify_all();
    missing_bytes_ = served_ ? 0 : missing_bytes_.load();
  }
  ended_ = true;
  (void)::eventfd_write(end_.get(), 1);
}

// What other threads want of the one that serves.
Result<bool> PostCopyIntake::wake_up() {
  ::eventfd_t count = 0;
  (void)::eventfd_read(wake_.get(), &count);
  std::vector<Newcomer> newcomers;
  std::vector<Session> sessions;
  bool complete = false;
  bool beat = false;
  {
    const std::lock_guard<std::mutex> held(lock_);
    if (stopping_) {
      return fail(Kind::gone, "the move has ended before all memory was here");
    }
    newcomers = std::exchange(newcomers_, {});
    sessions = std::exchange(sessions_, {});
    beat = std::exchange(beat_, false);
    complete = complete_;
  }
  for (Session& session : sessions) {
    let_in(std::move(session));
  }
  for (Newcomer& newcomer : newcomers) {
    FERRY_CHECK(server_->add_process(newcomer.pid, std::move(newcomer.uffd), std::move(newcomer.missing)));
  }
  if (!newcomers.empty()) {
    const std::lock_guard<std::mutex> held(lock_);
    not_accepted_ -= newcomers.size();
    accepted_.notify_all();
  }
  if (beat) {
    background_->beat();
    faults_->beat();
    FERRY_CHECK(check_patience());
  }
  connected_ = background_->connected();
  missing_bytes_ = server_->missing_bytes();
  return !(complete && server_->idle());
}

void PostCopyIntake::let_in(Session session) {
  log::info("pages come over {}", session.direct.empty() ? std::string("the remote shell")
                                                         : fmt::format("{} direct connections", session.direct.size()));
  if (session.direct.empty()) {
    background_->connect(std::move(*session.control));
    session.control.reset();
  } else {
    background_->connect(std::move(session.direct.front()));
    if (session.direct.size() > 1) {
      faults_->connect(std::move(session.direct[1]));
    }
  }
  session_ = std::move(session);  // the one before is not needed any more
}

Result<void> PostCopyIntake::check_patience() {
  const auto now = Clock::now();
  if (background_->connected()) {
    lost_since_.reset();
    return {};
  }
  lost_since_ = lost_since_.value_or(now);
  if (!taken_ && server_->missing_bytes() != 0 && now - *lost_since_ > kPatience) {
    return fail(Kind::gone, "the connections for memory broke before the container ran here");
  }
  return {};
}

void PostCopyIntake::guard_door() {
  sigset_t all;
  sigfillset(&all);
  ::pthread_sigmask(SIG_BLOCK, &all, nullptr);
  for (;;) {
    pollfd ready[] = {{stop_.get(), POLLIN, 0}, {listener_.get(), POLLIN, 0}};
    const int n = ::poll(ready, 2, static_cast<int>(kBeat.count()));
    if (ready[0].revents != 0) {
      return;
    }
    std::optional<Session> session;
    if (n > 0 && ready[1].revents != 0) {
      UniqueFd bringer = accept_at_door(listener_.get());
      if (!bringer) {
        continue;
      }
      auto greeted = greet(std::move(bringer));
      if (!greeted) {
        log::warning("a connection for memory came to nothing: {}", greeted.error().message());
        continue;
      }
      session = std::move(*greeted);
    }
    const std::lock_guard<std::mutex> held(lock_);
    beat_ = true;
    if (session.has_value()) {
      sessions_.push_back(std::move(*session));
    }
    (void)::eventfd_write(wake_.get(), 1);
  }
}

// What the source said to the one that brings the connection was Join; it is answered here.
Result<PostCopyIntake::Session> PostCopyIntake::greet(UniqueFd bringer) const {
  FERRY_TRY(auto brought, take_what_is_brought(bringer.get()));
  Session out{std::move(bringer),
              std::make_unique<Link>(std::move(brought.in), std::move(brought.out), stop_.get(), peer_),
              {}};
  wire::Message message;
  message.mutable_done();
  FERRY_CHECK(out.control->send(message));
  if (brought.direct) {
    FERRY_CHECK(out.control->receive(message, kGreeting));
    if (!message.has_streams()) {
      return fail(Kind::corrupt, "{} does not say which connections for memory it wants", peer_);
    }
    if (message.streams().address().empty()) {
      message.mutable_streams()->set_address(brought.reached);
    }
    StreamsIn streams(*out.control);
    FERRY_CHECK(streams.open(message.streams()));
    out.direct = streams.take();
  }
  return out;
}

}  // namespace ferry::migrate

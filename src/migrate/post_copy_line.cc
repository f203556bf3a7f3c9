#include "migrate/post_copy_line.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>

#include "base/log.h"
#include "migrate/hello.h"
#include "migrate/message.pb.h"
#include "migrate/record.h"
#include "sys/file.h"

namespace ferry::migrate {
namespace {

constexpr std::chrono::seconds kAnswerLimit(30);
constexpr std::chrono::seconds kBetween(2);
constexpr std::chrono::seconds kTell(1);
// A destination that takes nothing of what it asked for is not waited for longer than for a word of it.
constexpr std::chrono::seconds kTakesNothing(10);

std::string detour_path(const std::string& move) { return fmt::format("{}/{}.via", kMovesDirectory, move); }

}  // namespace

Result<void> write_detour(const std::string& move, const std::string& destination) {
  FERRY_CHECK(check_move_id(move));
  FERRY_TRY(const UniqueFd file, sys::open(detour_path(move), O_WRONLY | O_CREAT | O_TRUNC, 0600));
  return sys::write_all(file.get(), destination.data(), destination.size(), detour_path(move));
}

std::string read_detour(const std::string& move) { return sys::read_file(detour_path(move)).value_or(std::string()); }

void forget_detour(const std::string& move) {
  if (check_move_id(move)) {
    ::unlink(detour_path(move).c_str());
  }
}

PostCopyLine::~PostCopyLine() {
  {
    const std::lock_guard<std::mutex> held(lock_);
    stopping_ = true;
  }
  changed_.notify_all();
  if (interrupt_) {
    (void)::eventfd_write(interrupt_.get(), 1);
  }
  if (keeper_.joinable()) {
    keeper_.join();
  }
}

// A `ferry receive` of its own on the destination brings the connection to the one that waits for it.
Result<std::unique_ptr<PostCopyLine::Session>> PostCopyLine::connect() const {
  const std::string detour = read_detour(way_.move);
  const std::string& destination = detour.empty() ? way_.destination : detour;
  FERRY_TRY(RemoteShell shell, RemoteShell::start(way_.rsh, destination, {"ferry", "receive"}));
  auto out = std::make_unique<Session>(Session{std::move(shell), nullptr, {}, {}, false});
  out->control =
      std::make_unique<Link>(out->shell.take_output(), out->shell.take_input(), interrupt_.get(), destination);
  FERRY_TRY(const HostFacts facts, facts_of_this_host());
  FERRY_CHECK(send_hello(*out->control, facts));
  FERRY_CHECK(receive_hello(*out->control, kAnswerLimit));
  StreamOptions streams = way_.streams;
  streams.bandwidth = 0;  // somebody waits for every page
  streams.count = 2;      // what faults ask for, and all the rest
  if (!detour.empty()) {
    streams.address.clear();
  }
  wire::Message message;
  message.mutable_join()->set_move(way_.move);
  message.mutable_join()->set_direct(!streams.tunnel);
  FERRY_CHECK(out->control->send(message));
  wire::Message answer;
  FERRY_CHECK(out->control->receive(answer, kAnswerLimit));
  if (answer.has_all_here()) {
    out->complete = true;
    return out;
  }
  if (!answer.has_done()) {
    return fail(Kind::corrupt, "{} does not let connections for pages join", destination);
  }
  StreamsOut opener(*out->control, streams);
  FERRY_TRY(out->why_not_direct, opener.open());
  out->direct = opener.take();
  return out;
}

Result<std::string> PostCopyLine::open() {
  interrupt_ = UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!interrupt_) {
    return sys_fail("eventfd");
  }
  FERRY_TRY(auto session, connect().during("connecting for pages that are fetched later"));
  std::string why_not = session->why_not_direct;
  connected_ = true;
  keeper_ = std::thread([this, first = std::move(session)]() mutable { keep(std::move(first)); });
  return why_not;
}

Result<void> PostCopyLine::serve(Session& session) {
  const UniqueFd broken(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!broken) {
    return sys_fail("eventfd");
  }
  std::mutex lock;
  Result<void> first;  // failure: those that follow it only say that they were interrupted
  bool complete = false;
  std::vector<Link*> links;
  for (Link& link : session.direct) {
    links.push_back(&link);
  }
  if (links.empty()) {
    links.push_back(session.control.get());
  }
  std::vector<std::thread> lanes;
  for (Link* const link : links) {
    link->interrupt_by(broken.get());
    link->give_up_after(kTakesNothing);
    lanes.emplace_back([&, link] {
      auto served = supply_.serve(*link);
      const std::lock_guard<std::mutex> held(lock);
      complete = complete || served.has_value();
      if (!served && first) {
        first = std::move(served);
      }
      (void)::eventfd_write(broken.get(), 1);
    });
  }
  // Whoever stops us shall not wait for a silent destination.
  bool over = false;  // under lock_
  std::thread stopper([&] {
    std::unique_lock<std::mutex> held(lock_);
    changed_.wait(held, [&] { return stopping_ || over; });
    (void)::eventfd_write(broken.get(), 1);
  });
  for (std::thread& lane : lanes) {
    lane.join();
  }
  {
    const std::lock_guard<std::mutex> held(lock_);
    over = true;
  }
  changed_.notify_all();
  stopper.join();
  if (complete) {
    return {};
  }
  return first;
}

// False: it is time to end.
bool PostCopyLine::rest() {
  std::unique_lock<std::mutex> held(lock_);
  changed_.wait_for(held, kBetween, [this] { return stopping_; });
  return !stopping_;
}

void PostCopyLine::keep(std::unique_ptr<Session> session) {
  for (;;) {
    if (session != nullptr) {
      auto served = session->complete ? Result<void>() : serve(*session);
      session.reset();
      const std::lock_guard<std::mutex> held(lock_);
      connected_ = false;
      complete_ = served.has_value();
      if (!served) {
        trouble_ = served.error().message();
        broke_ = Clock::now();
      }
      changed_.notify_all();
      if (complete_ || stopping_) {
        return;
      }
    } else if (!rest()) {
      return;
    }
    auto made = connect();
    const std::lock_guard<std::mutex> held(lock_);
    connected_ = made.has_value();
    if (made) {
      session = std::move(*made);
    } else {
      trouble_ = made.error().message();
    }
    changed_.notify_all();
  }
}

Result<void> PostCopyLine::wait(const std::function<Result<void>(const Standing&)>& tell) {
  for (;;) {
    Standing standing;
    {
      std::unique_lock<std::mutex> held(lock_);
      if (!complete_) {
        changed_.wait_for(held, kTell);
      }
      standing = {connected_, complete_, connected_ ? std::string() : trouble_,
                  connected_ ? std::chrono::seconds(0)
                             : std::chrono::duration_cast<std::chrono::seconds>(Clock::now() - broke_)};
    }
    if (standing.complete) {
      return {};
    }
    FERRY_CHECK(tell(standing));
  }
}

}  // namespace ferry::migrate

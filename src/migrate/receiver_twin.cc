#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <thread>

#include "container/run_directory.h"
#include "migrate/freezer.h"
#include "migrate/pump.h"
#include "migrate/receiver.h"
#include "migrate/record.h"
#include "sys/file.h"

namespace ferry::migrate {
namespace {

using container::Arrival;
using container::Docker;
using wire::Message;

constexpr std::chrono::seconds kStartLimit(180);

}  // namespace

Result<bool> Receiver::offered(const wire::Offer& offer) {
  FERRY_CHECK(check_move_id(offer.move()));
  move_ = offer.move();
  FERRY_TRY(Arrival arrival,
            Arrival::plan(docker_, offer.container_json(), offer.networks_json(), offer.volumes_json()));
  arrival_.emplace(std::move(arrival));
  storage_.emplace(link_, *arrival_);
  FERRY_CHECK(open_logbook());
  Message message;
  wire::Reply& reply = *message.mutable_reply();
  for (const std::string& text : arrival_->obstacles()) {
    reply.add_obstacles(text);
  }
  for (const std::string& text : arrival_->differences()) {
    reply.add_differences(text);
  }
  reply.set_has_image(arrival_->has_image());
  reply.set_keeps_addresses(arrival_->keeps_addresses());
  FERRY_TRY(const auto present, arrival_->present_layers());
  for (const std::string& chain_id : offer.chain_ids()) {
    if (present.contains(chain_id)) {
      reply.add_present_chain_ids(chain_id);
    }
  }
  FERRY_CHECK(link_.send(message));
  if (reply.obstacles_size() > 0) {
    why_ = reply.obstacles(0);
    return true;
  }
  stage_ = Stage::offered;
  return false;
}

Result<void> Receiver::open_logbook() {
  Entry entry;
  entry.move = move_;
  entry.role = Role::destination;
  entry.container_name = arrival_->name();
  entry.peer = source_;
  entry.step = Step::offer;
  entry.restart_policy = arrival_->restart_policy().name;
  entry.restart_retries = arrival_->restart_policy().maximum_retries;
  entry.restarts_suspended = entry.restart_policy != "no" && !entry.restart_policy.empty();
  FERRY_TRY(Logbook book, Logbook::open(std::move(entry)));
  book_.emplace(std::move(book));
  FERRY_CHECK(guard_.tell("move " + move_));
  book_->step(Step::offer);
  return {};
}

Result<bool> Receiver::image() {
  book_->step(Step::image);
  FERRY_TRY(const auto bytes, receive_read(streams_.bulk(), [&](int fd) { return arrival_->load_image(fd); }));
  return done(bytes);
}

Result<bool> Receiver::create() {
  book_->step(Step::twin);
  FERRY_CHECK(book_->change([&](Entry& entry) {
    entry.volumes_made = arrival_->volumes().to_make;
    entry.put_aside = arrival_->volumes().to_put_aside;
  }));
  auto created = arrival_->create(move_);
  FERRY_CHECK(book_->change([&](Entry& entry) { entry.container_id = arrival_->id(); }));
  FERRY_CHECK(created);
  stage_ = Stage::created;
  return done();
}

Result<bool> Receiver::log_file(const std::string& suffix) {
  FERRY_TRY(const UniqueFd file, arrival_->open_log(suffix));
  has_log_ = true;
  FERRY_CHECK(streams_.bulk().receive_stream([&](std::span<const std::byte> bytes) {
    return sys::write_all(file.get(), bytes.data(), bytes.size(), "the log of the twin");
  }));
  return false;
}

Result<bool> Receiver::start(const wire::Start& start) {
  book_->step(Step::start);
  FERRY_TRY(const std::string set, streams_.bulk().receive_text(kSetLimit));
  FERRY_CHECK(container::make_run_directory());
  const std::string socket = fmt::format("{}/{}.sock", container::kRunDirectory, move_);
  FERRY_TRY(auto server, engine::ReferenceServer::listen(socket));
  FERRY_TRY(const auto reference,
            arrival_->refer(socket, {start.descriptors().begin(), start.descriptors().end()}, start.tcp_close()));
  FERRY_TRY(engine::Skeleton skeleton, serve_start(server, reference.name(), set));
  root_ = skeleton.root;
  FERRY_TRY(engine::Twin twin, engine::Twin::adopt(std::move(skeleton), looked_at_));
  twin_.emplace(std::move(twin));
  // Until its tracer has seen its end Docker does not hear of it (ptrace(2)), and who stopped it would wait.
  twin_pidfd_.reset(static_cast<int>(::syscall(SYS_pidfd_open, root_.value, 0)));
  link_.end_with(twin_pidfd_.get(), "the twin was stopped on the destination");
  FERRY_TRY(const auto shim, container::find_shim(root_, arrival_->id()));
  shim_ = shim.pid;
  FERRY_TRY(freeze_cgroup_, freeze_cgroup_of(shim));
  FERRY_CHECK(book_->change([&](Entry& entry) {
    entry.root = root_.value;
    entry.shim = shim_.value;
    entry.freeze_cgroup = freeze_cgroup_;
  }));
  FERRY_TRY(Draft taken, draft_decision(move_, Decision::taken));
  taken_record_.emplace(std::move(taken));
  FERRY_TRY(PageFiles pages, PageFiles::make());
  pages_.emplace(std::move(pages));
  FERRY_CHECK(
      streams_.begin_pages([this](image::Name name, std::span<const ArrivedPages> runs) { return put(name, runs); }));
  stage_ = Stage::started;
  return done();
}

Result<std::string> Receiver::freeze_cgroup_of(const container::ShimInfo& shim) const {
  FERRY_TRY(const auto facts, container::runtime_facts(shim, root_, arrival_->id()));
  return facts.freeze_cgroup;
}

Result<engine::Skeleton> Receiver::serve_start(engine::ReferenceServer& server, const std::string& checkpoint,
                                               const std::string& set) {
  FERRY_TRY(looked_at_, image::decode(set).during("reading what the source looked like"));
  const UniqueFd failed(::eventfd(0, EFD_CLOEXEC));
  if (!failed) {
    return sys_fail("eventfd");
  }
  Result<void> started;
  std::thread runtime([&] {
    const auto work = [&]() -> Result<void> {
      FERRY_TRY(Docker docker, Docker::connect());
      return docker.start_from_checkpoint(arrival_->id(), checkpoint);
    };
    started = work();
    if (!started) {
      ::eventfd_write(failed.get(), 1);
    }
  });
  auto skeleton = server.serve(set, failed.get(), kStartLimit);
  runtime.join();
  if (!skeleton && skeleton.error().kind != Kind::gone) {
    return std::move(skeleton).during("making the twin's skeleton");
  }
  FERRY_CHECK(std::move(started).during("starting the twin"));
  return skeleton;
}

}  // namespace ferry::migrate

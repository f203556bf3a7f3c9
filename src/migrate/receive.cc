#include "migrate/receive.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <mutex>
#include <optional>
#include <thread>

#include "base/log.h"
#include "container/bundle.h"
#include "container/move_target.h"
#include "engine/reference.h"
#include "engine/twin.h"
#include "migrate/announce.h"
#include "migrate/direct.h"
#include "migrate/freezer.h"
#include "migrate/guard.h"
#include "migrate/hello.h"
#include "migrate/link.h"
#include "migrate/logbook.h"
#include "migrate/message.pb.h"
#include "migrate/pages.h"
#include "migrate/post_copy_door.h"
#include "migrate/post_copy_intake.h"
#include "migrate/pump.h"
#include "migrate/record.h"
#include "migrate/settle.h"
#include "migrate/storage_in.h"
#include "migrate/streams_in.h"
#include "migrate/understudy.h"
#include "state/mount/refill.h"
#include "state/net_gate/net_gate.h"
#include "sys/file.h"
#include "tracee/thread.h"

namespace ferry::migrate {
namespace {

using container::Arrival;
using container::Docker;
using wire::Message;

constexpr const char* kRunDirectory = "/run/ferry";
constexpr std::chrono::minutes kSourceSilence(30);  // it may be saving a large image
constexpr std::chrono::seconds kStartLimit(180);
constexpr std::uint64_t kSetLimit = 1ULL << 30;
// The twin's output is held back until the source's last lines are here; not for ever, since a program
// that prints a lot would then stand still.
constexpr std::chrono::seconds kHoldLimit(10);
constexpr int kHeldPipe = 1 << 20;
constexpr std::chrono::milliseconds kTell(1000);  // the logbook how much memory is missing

// containerd's shim of the twin, stopped: it is the one that reads what the twin prints.
class HeldOutput {
 public:
  HeldOutput() = default;
  HeldOutput(const HeldOutput&) = delete;
  HeldOutput& operator=(const HeldOutput&) = delete;
  ~HeldOutput() { release(); }
  Result<void> hold(HostPid shim, HostPid root) {
    if (::kill(shim.value, SIGSTOP) != 0) {
      return sys_fail(fmt::format("kill({}, SIGSTOP)", shim));
    }
    shim_ = shim;
    for (const int fd : {1, 2}) {
      // Room for what is printed meanwhile.  Terminals and files refuse, which is as well.
      const UniqueFd output(::open(fmt::format("/proc/{}/fd/{}", root, fd).c_str(), O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
      if (output) {
        ::fcntl(output.get(), F_SETPIPE_SZ, kHeldPipe);
      }
    }
    return {};
  }
  void release() {
    if (shim_.value > 0) {
      ::kill(shim_.value, SIGCONT);
      shim_ = HostPid();
    }
  }

 private:
  HostPid shim_;
};

// What is left to do when the receiver was killed: nothing that was not decided may stay.
void clean_up_after(const Guard::Lines& lines) {
  for (const std::string& line : lines) {
    if (line.starts_with("move ")) {
      settle_patiently(line.substr(5), Role::destination);
    }
  }
}

// What the source has brought us to.
enum class Stage {
  greeted,   // from the handshake; to offered by Offer; Ask and Join end here
  offered,   // to created by Create; Image stays here
  created,   // there is a twin; Layer and LogFile stay here, Start leads to started
  started,   // its skeleton is ours; Precopy, pages, Round, PostCopy, Stale and Delta stay here, Images leads to grown
  grown,     // only Given leads on
  taken,     // it runs here; LogTail stays here, Finish ends
};

class Receiver {
 public:
  Receiver(Link& link, Docker& docker, Guard& guard, std::string source)
      : link_(link), docker_(docker), guard_(guard), source_(std::move(source)) {}
  Receiver(const Receiver&) = delete;
  Receiver& operator=(const Receiver&) = delete;
  ~Receiver() {
    if (stage_ != Stage::taken && !leave()) {
      return;  // the guard goes on trying
    }
    if (book_.has_value()) {
      book_->close(stage_ == Stage::taken ? Outcome::moved : Outcome::stayed, why_);
    }
    guard_.dismiss();
  }

  Result<void> serve() {
    for (;;) {
      auto done = step();
      if (!done) {
        Error error = streams_.break_off(std::move(done).error());
        why_ = error.message();
        return give_up(std::move(error));
      }
      if (*done) {
        return {};
      }
    }
  }

 private:
  // The skeletons die first, so that Docker finds a container that has ended.
  bool leave() {
    if (held_still_) {
      if (auto killed = kill_frozen(freeze_cgroup_); !killed) {
        log::warning("{}", killed.error().message());
        return false;
      }
    }
    held_.release();
    twin_.reset();
    if (arrival_ && !arrival_->id().empty()) {
      if (auto gone = container::discard_twin(docker_, arrival_->id()); !gone && gone.error().kind != Kind::gone) {
        log::warning("{}", gone.error().message());
        return false;
      }
    }
    if (book_.has_value()) {
      const Entry& entry = book_->entry();
      if (auto undone = container::undo_volumes(docker_, entry.volumes_made, entry.put_aside, move_); !undone) {
        log::warning("{}", undone.error().message());
        return false;
      }
    }
    return true;
  }

  // True when there is nothing more to do.
  Result<bool> step() {
    const bool holding = stage_ == Stage::taken && !late_;
    auto frame = link_.receive_head(holding ? std::chrono::milliseconds(kHoldLimit) : std::chrono::milliseconds(kSourceSilence));
    if (!frame && holding) {
      return output_is_late(frame.error());
    }
    FERRY_CHECK(frame);
    if (frame->kind == FrameKind::pages) {
      FERRY_CHECK(expect(Stage::started, "pages"));
      FERRY_CHECK(reader_.receive(link_, *frame, [this](image::Name name, std::span<const ArrivedPages> runs) { return put(name, runs); }));
      return false;
    }
    Message message;
    FERRY_CHECK(link_.receive_control(*frame, message));
    return handle(message);
  }

  Result<bool> handle(const Message& message) {
    switch (message.kind_case()) {
      case Message::kPing:
        return pong();
      case Message::kAsk:
        return answer(message.ask());
      case Message::kOffer:
        FERRY_CHECK(expect(Stage::greeted, "an offer"));
        return offered(message.offer());
      case Message::kStreams:
        FERRY_CHECK(expect(Stage::offered, "the order to listen"));
        FERRY_CHECK(streams_.open(message.streams()));
        return false;
      case Message::kImage:
        FERRY_CHECK(expect(Stage::offered, "an image"));
        return image();
      case Message::kCreate:
        FERRY_CHECK(expect(Stage::offered, "the order to create the twin"));
        return create();
      case Message::kLayer:
        FERRY_CHECK(expect(Stage::created, "files"));
        book_->step(Step::files);
        FERRY_CHECK(storage_->layer(message.layer(), streams_.bulk()));
        return false;
      case Message::kLogFile:
        FERRY_CHECK(expect(Stage::created, "a log"));
        return log_file(message.log_file().suffix());
      case Message::kStart:
        FERRY_CHECK(expect(Stage::created, "the order to start the twin"));
        return start(message.start());
      case Message::kPrecopy:
        FERRY_CHECK(expect(Stage::started, "the order to prepare for its memory"));
        book_->step(Step::rounds);
        return precopy();
      case Message::kRound:
        FERRY_CHECK(expect(Stage::started, "the end of a round"));
        book_->round(++round_, message.round().dirty_pages());
        FERRY_CHECK(streams_.wait_for(message.round().mark()));
        return done();
      case Message::kJoin:
        FERRY_CHECK(expect(Stage::greeted, "a connection for memory"));
        return join(message.join());
      case Message::kPostCopy:
        FERRY_CHECK(expect(Stage::started, "the order to fetch memory later"));
        return post_copy();
      case Message::kStale:
        FERRY_CHECK(expect(Stage::started, "a list of stale pages"));
        return stale(message.stale());
      case Message::kPagesEnd:
        FERRY_CHECK(expect(Stage::started, "the end of all pages"));
        FERRY_CHECK(streams_.end_pages(message.pages_end().mark()));
        return false;
      case Message::kPackets:
        return packets(message.packets());
      case Message::kDelta:
        FERRY_CHECK(expect(Stage::started, "changed files"));
        FERRY_CHECK(storage_->delta(message.delta(), streams_.bulk()));
        return false;
      case Message::kBlocks:
        FERRY_CHECK(expect(Stage::started, "a question for a file"));
        FERRY_CHECK(storage_->blocks(message.blocks()));
        return false;
      case Message::kPatch:
        FERRY_CHECK(expect(Stage::started, "a changed file"));
        FERRY_CHECK(storage_->patch(message.patch(), streams_.bulk()));
        return false;
      case Message::kImages:
        FERRY_CHECK(expect(Stage::started, "a tree"));
        return grow();
      case Message::kGiven:
        FERRY_CHECK(expect(Stage::grown, "the hand-over"));
        FERRY_CHECK(take());
        if (intake_ != nullptr) {
          FERRY_CHECK(fetch_rest());
        }
        return false;
      case Message::kLogTail:
        FERRY_CHECK(expect(Stage::taken, "the end of a log"));
        return log_file(message.log_tail().suffix());
      case Message::kFinish:
        FERRY_CHECK(expect(Stage::taken, "the order to finish"));
        return finish();
      default:
        return fail(Kind::corrupt, "{} sent a message that does not belong here", link_.peer());
    }
  }

  // A pidfd is readable when its process has ended (pidfd_open(2)).
  [[nodiscard]] bool twin_died() const {
    pollfd ended{.fd = twin_pidfd_.get(), .events = POLLIN, .revents = 0};
    return twin_pidfd_ && ::poll(&ended, 1, 0) > 0;
  }

  Result<void> expect(Stage stage, std::string_view what) const {
    if (stage_ != stage) {
      return fail(Kind::corrupt, "{} sent {} at the wrong time", link_.peer(), what);
    }
    return {};
  }

  Result<bool> done(std::uint64_t bytes = 0, std::uint64_t entries = 0) {
    Message message;
    message.mutable_done()->set_bytes(bytes);
    message.mutable_done()->set_entries(entries);
    FERRY_CHECK(link_.send(message));
    return false;
  }

  Result<bool> pong() {
    FERRY_CHECK(send_clocks(link_));
    return false;
  }

  // A source in doubt.  Whoever has not taken by now never will.
  Result<bool> answer(const wire::Ask& ask) {
    FERRY_TRY(const Decision decision, decide(ask.move(), Decision::refused));
    Message message;
    if (decision == Decision::taken) {
      const auto entry = read_entry(ask.move(), Role::destination);
      message.mutable_taken()->set_lost(entry.has_value() && entry->pages_due && entry->ended != 0);
    } else {
      message.mutable_refused()->set_reason("the destination did not take the container");
    }
    FERRY_CHECK(link_.send(message));
    return true;
  }

  // For the process on this host that fetches the memory of a tree that runs already.
  Result<bool> join(const wire::Join& join) {
    FERRY_CHECK(check_move_id(join.move()));
    FERRY_TRY(const Entry entry, read_entry(join.move(), Role::destination));
    if (!entry.pages_due) {
      Message message;
      message.mutable_all_here();
      FERRY_CHECK(link_.send(message));
      return true;
    }
    if (entry.ended != 0 || !is_at_work(entry)) {
      return fail(Kind::gone,
                  "container {} was ended here while a part of its memory was on {} only, because the ferry that fetched it was "
                  "ended; what is left of it stands frozen there, and \"ferry resolve {} --revive-source\" lets it run on there as it was "
                  "when it was given away",
                  entry.container_name, entry.peer, join.move().substr(0, 12));
    }
    FERRY_CHECK(bring_connection(join.move(), link_, join.direct(), reached_address(::getenv("SSH_CONNECTION"))));
    return true;
  }

  Result<bool> offered(const wire::Offer& offer) {
    FERRY_CHECK(check_move_id(offer.move()));
    move_ = offer.move();
    FERRY_TRY(Arrival arrival, Arrival::plan(docker_, offer.container_json(), offer.networks_json(), offer.volumes_json()));
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

  Result<void> open_logbook() {
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

  Result<bool> image() {
    book_->step(Step::image);
    FERRY_TRY(const auto bytes, receive_read(streams_.bulk(), [&](int fd) { return arrival_->load_image(fd); }));
    return done(bytes);
  }

  Result<bool> create() {
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

  // The twin is not started yet, or its output is held: nobody else writes.
  Result<bool> log_file(const std::string& suffix) {
    FERRY_TRY(const UniqueFd file, arrival_->open_log(suffix));
    has_log_ = true;
    FERRY_CHECK(streams_.bulk().receive_stream([&](std::span<const std::byte> bytes) {
      return sys::write_all(file.get(), bytes.data(), bytes.size(), "the log of the twin");
    }));
    return false;
  }

  Result<bool> start(const wire::Start& start) {
    book_->step(Step::start);
    FERRY_TRY(const std::string set, streams_.bulk().receive_text(kSetLimit));
    if (::mkdir(kRunDirectory, 0700) != 0 && errno != EEXIST) {
      return sys_fail(fmt::format("mkdir({})", kRunDirectory));
    }
    const std::string socket = fmt::format("{}/{}.sock", kRunDirectory, move_);
    FERRY_TRY(auto server, engine::ReferenceServer::listen(socket));
    FERRY_TRY(const auto reference, arrival_->refer(socket, {start.descriptors().begin(), start.descriptors().end()}, start.tcp_close()));
    FERRY_TRY(const engine::Skeleton skeleton, serve_start(server, reference.name(), set));
    FERRY_TRY(engine::Twin twin, engine::Twin::adopt(skeleton));
    twin_.emplace(std::move(twin));
    root_ = skeleton.root;
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
    FERRY_TRY(PageFiles pages, PageFiles::make());
    pages_.emplace(std::move(pages));
    FERRY_CHECK(streams_.begin_pages([this](image::Name name, std::span<const ArrivedPages> runs) { return put(name, runs); }));
    stage_ = Stage::started;
    return done();
  }

  [[nodiscard]] Result<std::string> freeze_cgroup_of(const container::ShimInfo& shim) const {
    FERRY_TRY(const auto facts, container::runtime_facts(shim, root_, arrival_->id()));
    return facts.freeze_cgroup;
  }

  // Docker works in a thread with a connection of its own, while this thread serves the criu it starts.
  Result<engine::Skeleton> serve_start(engine::ReferenceServer& server, const std::string& checkpoint, const std::string& set) {
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

  Result<bool> precopy() {
    const std::lock_guard<std::mutex> held(where_pages_go_);
    FERRY_CHECK(twin_->grow_ahead(looked_at_, pages_->directory()).during("making skeletons on the destination"));
    return done();
  }

  // What is missing at the hand-over is fetched when the tree runs.
  Result<bool> post_copy() {
    if (intake_ != nullptr) {
      return fail(Kind::corrupt, "{} orders twice to fetch memory later", link_.peer());
    }
    FERRY_TRY(intake_, PostCopyIntake::open(move_, freeze_cgroup_, link_.peer()));
    FERRY_CHECK(book_->change([](Entry& entry) { entry.pages_due = true; }));
    return done();
  }

  Result<bool> stale(const wire::Stale& stale) {
    std::vector<sys::PageRange> ranges;
    for (int i = 0; i + 1 < stale.borders_size(); i += 2) {
      const std::uint64_t start = stale.borders(i);
      const std::uint64_t end = stale.borders(i + 1);
      if (start % image::kPageSize != 0 || end % image::kPageSize != 0 || start >= end) {
        return fail(Kind::corrupt, "{} calls {:#x}-{:#x} stale, which are no pages", link_.peer(), start, end);
      }
      ranges.push_back({start, end});
    }
    const std::lock_guard<std::mutex> held(where_pages_go_);
    FERRY_CHECK(twin_->drop_ahead(NsPid(static_cast<pid_t>(stale.pid())), ranges));
    return false;
  }

  // Straight to where they will be, if that is there already.  Called by several threads.
  Result<void> put(image::Name name, std::span<const ArrivedPages> runs) {
    const NsPid pid(static_cast<pid_t>(name.id));
    {
      const std::lock_guard<std::mutex> held(where_pages_go_);
      if (name.type != image::Type::pagemap || !twin_->is_ahead(pid)) {
        return pages_->keep(name, runs);
      }
    }
    std::vector<sys::Placed> placed;
    for (const ArrivedPages& run : runs) {
      if (run.zeros) {
        FERRY_CHECK(twin_->zero_ahead(pid, run.vaddr, run.pages * image::kPageSize));
      } else {
        placed.push_back({run.vaddr, run.content});
      }
    }
    return twin_->write_ahead(pid, placed);
  }

  Result<bool> grow() {
    FERRY_TRY(const std::string bytes, streams_.bulk().receive_text(kSetLimit));
    laps_.skip();
    FERRY_TRY(image::Set set, image::decode(bytes).during("reading the tree that arrived"));
    // The twin's own tmpfs were filled when its skeleton was made.
    FERRY_CHECK(state::mount::refill_tmpfs(root_, looked_at_, set));
    laps_.add("refill tmpfs");
    FERRY_TRY(const int images, pages_->complete(std::move(set)));
    laps_.add("keep images");
    FERRY_CHECK(twin_->grow(images, intake_.get()).during("building the tree on the destination"));
    if (intake_ != nullptr) {
      FERRY_CHECK(intake_->tree_is_complete().during("fetching memory for the tree on the destination"));
    }
    laps_.skip();
    pages_.reset();
    laps_.add("free images");
    stage_ = Stage::grown;
    book_->step(Step::grow);
    FERRY_CHECK(prepare_for_our_death());
    return false;
  }

  // They are for the tree that goes on here.
  Result<bool> packets(const wire::Packets& packets) {
    if (stage_ != Stage::grown && stage_ != Stage::taken) {
      return fail(Kind::corrupt, "{} sent packets at the wrong time", link_.peer());
    }
    packets_.insert(packets_.end(), packets.packets().begin(), packets.packets().end());
    if (stage_ == Stage::taken) {
      deliver_packets();
    }
    return false;
  }

  // A packet that is lost is sent again by who sent it, only later.
  void deliver_packets() {
    const auto deliver = [&]() -> Result<void> {
      FERRY_TRY(const UniqueFd ns, sys::open(fmt::format("/proc/{}/ns/net", root_), O_RDONLY));
      FERRY_CHECK(state::net_gate::deliver(ns.get(), packets_));
      return {};
    };
    if (auto done = packets_.empty() ? Result<void>() : deliver(); !done) {
      log::warning("{}", done.error().message());
    }
    packets_.clear();
  }

  Result<bool> take() {
    link_.end_with(-1, {});
    if (!twin_->alive() || twin_died()) {
      return fail(Kind::gone, "the twin was stopped on the destination");
    }
    laps_.skip();
    if (has_log_) {
      FERRY_CHECK(held_.hold(shim_, root_));
    }
    if (intake_ != nullptr) {
      FERRY_CHECK(intake_->taken());
    }
    FERRY_TRY(const Decision decision, decide(move_, Decision::taken));
    if (decision != Decision::taken) {
      return fail(Kind::gone, "the source asked what became of the container, and was told that it is not here");
    }
    laps_.add("record");
    stage_ = Stage::taken;
    book_->step(Step::taken);
    understudy_->take_the_stage();
    auto resumed = twin_->resume();
    if (auto thawed = thaw(freeze_cgroup_); !thawed) {
      log::error(thawed.error());
    }
    deliver_packets();
    laps_.add("let go");
    Message message;
    for (const std::vector<Lap>& some : {twin_->laps(), laps_.all()}) {
      for (const Lap& lap : some) {
        wire::Taken::Part& part = *message.mutable_taken()->add_parts();
        part.set_name(lap.name);
        part.set_ms(lap.ms);
      }
    }
    message.mutable_taken()->set_resumed_ns(monotonic_ns());
    if (!resumed) {
      log::error(resumed.error());
    }
    book_->step(Step::resumed);
    if (auto announced = announce_addresses(root_); !announced) {
      notes_.push_back("the container's address was not announced: " + announced.error().message());
    }
    if (auto told = link_.send(message); !told) {
      // It will ask again, by another connection.
      log::warning("{}", told.error().message());
    }
    understudy_.reset();
    if (auto clean = twin_->clean_up(); !clean) {
      log::warning("{}", clean.error().message());
    }
    return false;
  }

  // From here on the tree outlives us: if we are killed it is let go by the kernel, and frozen, until whoever comes
  // after us (understudy, guard, resolve) has seen whether it was taken.  The source is writing its record meanwhile.
  Result<void> prepare_for_our_death() {
    FERRY_CHECK(freeze(freeze_cgroup_));
    held_still_ = true;
    FERRY_CHECK(twin_->outlive_us());
    FERRY_TRY(Understudy understudy, post_understudy());
    understudy_.emplace(std::move(understudy));
    book_->step(Step::hold);
    laps_.add("prepare for our death");
    return {};
  }

  // The tree runs.  Until its last page has come, this process must not end: nobody else can serve its faults.
  Result<void> fetch_rest() {
    book_->step(Step::pages);
    const auto begin = std::chrono::steady_clock::now();
    bool has_source = true;  // on the connection that began the move, which may break as well
    for (;;) {
      pollfd ready[] = {{intake_->end(), POLLIN, 0}, {has_source ? link_.descriptor() : -1, POLLIN, 0}};
      if (::poll(ready, 2, static_cast<int>(kTell.count())) < 0 && errno != EINTR) {
        return sys_fail("poll(memory that is fetched)");
      }
      if (ready[1].revents != 0) {
        if (const auto heard = step(); !heard) {
          log::warning("{}", heard.error().message());
          has_source = false;
        }
      }
      if (!late_ && std::chrono::steady_clock::now() - begin > kHoldLimit) {
        FERRY_CHECK(output_is_late(Error{.kind = Kind::gone, .what = "the container's memory is being fetched", .during = {}}));
      }
      const PostCopyIntake::Standing standing = intake_->standing();
      book_->fetching(standing.missing_bytes / image::kPageSize, standing.connected);
      if (standing.ended) {
        break;
      }
    }
    const auto took = std::chrono::steady_clock::now() - begin;
    auto report = intake_->result();
    if (!report) {
      // It would run on with zeros where its memory was.
      FERRY_CHECK(kill_frozen(freeze_cgroup_));
      return tl::unexpected<Error>(std::move(report).error());
    }
    // Before the source is told: whoever asks later gets the same answer.
    FERRY_CHECK(book_->change([](Entry& entry) { entry.pages_due = false; }));
    intake_->tell_source();
    wire::Fetched& fetched = fetched_.emplace();
    fetched.set_pages(report->pages);
    fetched.set_ms(std::chrono::duration<double, std::milli>(took).count());
    fetched.set_faults(report->faults);
    fetched.set_median_us(report->median_us);
    fetched.set_p99_us(report->p99_us);
    intake_.reset();
    return {};
  }

  Result<Understudy> post_understudy() {
    if (intake_ != nullptr) {
      // A tree whose memory nobody fetches any more would read zeros: its warden ends it.
      return Understudy::post([this] { link_.close(); }, [] {}, [] {});
    }
    const auto thaw_it = [this] { static_cast<void>(thaw(freeze_cgroup_)); };
    // The guard has to wait for it, so it keeps the guard's pipe; the source must see that we are gone.
    const auto at_once = [this] { link_.close(); };
    const auto at_death = [this, thaw_it] {
      const auto decided = decision_of(move_);
      if (decided.has_value() && *decided == Decision::taken) {
        static_cast<void>(twin_->resume_untraced());
        thaw_it();
      }
    };
    return Understudy::post(at_once, at_death, thaw_it);
  }

  // The source is slow or gone: the twin's own lines may be printed before the last of the source.
  Result<bool> output_is_late(const Error& error) {
    held_.release();
    late_ = true;
    notes_.push_back(fmt::format("the last lines of the log did not come in time ({}): they may stand behind later ones, or be missing", error.message()));
    return false;
  }

  Result<bool> finish() {
    book_->step(Step::finish);
    held_.release();
    FERRY_CHECK(arrival_->finish());
    if (auto forgotten = container::forget_aside(arrival_->volumes().to_put_aside, move_); !forgotten) {
      notes_.push_back(forgotten.error().message());
    }
    Message message;
    for (const std::string& note : notes_) {
      message.mutable_finished()->add_notes(note);
    }
    if (fetched_.has_value()) {
      *message.mutable_finished()->mutable_fetched() = *fetched_;
    }
    message.mutable_finished();
    FERRY_CHECK(link_.send(message));
    forget_decision(move_);
    return true;
  }

  Result<void> give_up(Error error) {
    link_.end_with(-1, {});
    Message message;
    switch (stage_) {
      case Stage::greeted:
      case Stage::offered:
      case Stage::created:
        message.mutable_failure()->set_reason(error.message());
        break;
      case Stage::started:
      case Stage::grown: {
        // Decided before it is said: whoever asks later gets the same answer.
        const auto decision = decide(move_, Decision::refused);
        if (!decision) {
          return tl::unexpected<Error>(decision.error());
        }
        message.mutable_refused()->set_reason(error.message());
        break;
      }
      case Stage::taken:
        // The source is not needed any more.
        held_.release();
        log::warning("the move ended without its source: {}", error.message());
        return arrival_->finish();
    }
    if (link_.send(message)) {
      return {};  // it is the source's to show
    }
    return tl::unexpected<Error>(std::move(error));
  }

  Link& link_;
  Docker& docker_;
  Guard& guard_;
  std::string source_;
  std::optional<Logbook> book_;  // from the offer on
  std::string why_;              // it ends without the container
  int round_ = 0;
  Stage stage_ = Stage::greeted;
  std::string move_;
  std::optional<Arrival> arrival_;
  std::optional<StorageIn> storage_;  // uses it
  std::unique_ptr<PostCopyIntake> intake_;  // of a post-copy; outlives the twin
  std::optional<engine::Twin> twin_;
  image::Set looked_at_;  // what the twin's skeleton was made from
  std::optional<PageFiles> pages_;
  std::mutex where_pages_go_;  // held while that changes, and for what is not thread-safe about it
  BatchReader reader_;         // of pages that come over the remote shell
  StreamsIn streams_{link_};   // last: its threads use what is above
  std::vector<std::string> packets_;  // that the container has not had yet
  Laps laps_;
  HostPid root_;
  UniqueFd twin_pidfd_;
  HostPid shim_;
  std::string freeze_cgroup_;
  bool held_still_ = false;  // frozen, and not ours to kill by ptrace
  std::optional<Understudy> understudy_;
  HeldOutput held_;
  bool has_log_ = false;
  bool late_ = false;
  std::optional<wire::Fetched> fetched_;
  std::vector<std::string> notes_;
};

}  // namespace

Result<void> receive(UniqueFd in, UniqueFd out) {
  constexpr std::chrono::seconds kGreeting(60);
  FERRY_TRY(Guard guard, Guard::post(clean_up_after));
  tracee::block_sigchld();
  ::signal(SIGPIPE, SIG_IGN);
  ::fcntl(in.get(), F_SETPIPE_SZ, 1 << 20);  // where it is no pipe, or not allowed, it stays as it is
  Link link(std::move(in), std::move(out), -1, "the source");
  FERRY_TRY(const HostFacts facts, facts_of_this_host());
  FERRY_CHECK(send_hello(link, facts));
  FERRY_TRY(const HostFacts source, receive_hello(link, kGreeting));
  auto docker = Docker::connect();
  if (!docker) {
    Message message;
    message.mutable_failure()->set_reason(docker.error().message());
    return link.send(message);
  }
  Receiver receiver(link, *docker, guard, source.name);
  return receiver.serve();
}

}  // namespace ferry::migrate

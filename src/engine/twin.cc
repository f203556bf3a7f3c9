#include "engine/twin.h"

#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <nlohmann/json.hpp>

#include "engine/console.h"
#include "engine/limits.h"
#include "engine/restore_story.h"
#include "sys/file.h"

namespace ferry::engine {
namespace {

// The runtime has had its notifications; nobody listens when the twin goes on.
class Nobody final : public Listener {
 public:
  Result<Answer> on(const Notice& /*notice*/) override { return Answer{}; }
};

}  // namespace

std::string encode_skeleton(const Skeleton& s) {
  nlohmann::json json{
      {"root", s.root.value}, {"area_base", s.area_base},           {"area_size", s.area_size},
      {"park", s.park},       {"receiver_pidfd", s.receiver_pidfd}, {"root_directory", s.root_directory}};
  json["inherit_fds"] = nlohmann::json::array();
  for (const InheritFd& i : s.inherit_fds) {
    json["inherit_fds"].push_back({{"key", i.key}, {"fd", i.fd}});
  }
  json["external_mounts"] = nlohmann::json::array();
  for (const ExternalMount& m : s.external_mounts) {
    json["external_mounts"].push_back({{"key", m.key}, {"value", m.value}});
  }
  json["cgroup_roots"] = nlohmann::json::array();
  for (const CgroupRoot& c : s.cgroup_roots) {
    json["cgroup_roots"].push_back({{"controller", c.controller}, {"path", c.path}});
  }
  json["namespaces"] = nlohmann::json::array();
  for (const state::HeldNamespace& n : s.namespaces) {
    json["namespaces"].push_back({{"kind", static_cast<int>(n.kind)}, {"inode", n.inode}});
  }
  return json.dump();
}

Result<Skeleton> decode_skeleton(std::string_view text) {
  const auto json = nlohmann::json::parse(text, nullptr, false);
  if (!json.is_object()) {
    return fail(Kind::corrupt, "what criu says of the skeleton is no JSON");
  }
  try {
    Skeleton s;
    s.root = HostPid(json.at("root").get<pid_t>());
    s.area_base = json.at("area_base").get<std::uint64_t>();
    s.area_size = json.at("area_size").get<std::uint64_t>();
    s.park = json.at("park").get<std::uint64_t>();
    s.receiver_pidfd = json.at("receiver_pidfd").get<int>();
    s.root_directory = json.at("root_directory").get<std::string>();
    for (const auto& i : json.at("inherit_fds")) {
      s.inherit_fds.push_back({i.at("key").get<std::string>(), i.at("fd").get<int>()});
    }
    for (const auto& m : json.at("external_mounts")) {
      s.external_mounts.push_back({m.at("key").get<std::string>(), m.at("value").get<std::string>()});
    }
    for (const auto& c : json.at("cgroup_roots")) {
      s.cgroup_roots.push_back({c.at("controller").get<std::string>(), c.at("path").get<std::string>()});
    }
    for (const auto& n : json.at("namespaces")) {
      const auto kind = n.at("kind").get<std::size_t>();
      if (kind >= state::kNsKinds) {
        return fail(Kind::corrupt, "criu holds a namespace of kind {}, which there is not", kind);
      }
      s.namespaces.push_back({static_cast<state::NsKind>(kind), n.at("inode").get<std::uint64_t>(), UniqueFd()});
    }
    return s;
  } catch (const nlohmann::json::exception& e) {
    return fail(Kind::corrupt, "what criu says of the skeleton cannot be read: {}", e.what());
  }
}

Result<Skeleton> make_skeleton(image::Set set, const RestoreOptions& options, Listener& listener, int receiver) {
  RestoreStory story(options, listener);
  FERRY_CHECK(raise_descriptor_limit());
  FERRY_CHECK(story.read(std::move(set)));
  FERRY_CHECK(story.tell(Stage::pre_restore));
  FERRY_CHECK(story.make_root_world(receiver));
  state::RestoreTask& root = story.context().root();
  Skeleton out;
  out.root = root.pid;
  out.area_base = story.layout().area.base;
  out.area_size = story.layout().area.size;
  out.park = story.layout().park;
  out.receiver_pidfd = root.controller_pidfd;
  out.inherit_fds = options.inherit_fds;
  if (options.orphan_pts_master) {
    FERRY_TRY(const auto consoles, make_consoles(story.context()));
    out.inherit_fds.insert(out.inherit_fds.end(), consoles.begin(), consoles.end());
  }
  out.external_mounts = options.external_mounts;
  out.cgroup_roots = options.cgroup_roots;
  out.root_directory = options.root;
  out.namespaces = story.give_namespaces();
  FERRY_CHECK(story.tell(Stage::post_restore, true));
  std::vector<int> keep;
  for (const InheritFd& i : out.inherit_fds) {
    keep.push_back(i.fd);
  }
  FERRY_CHECK(story.put_root_to_sleep(std::move(keep)));
  for (const Stage stage : {Stage::network_unlock, Stage::pre_resume, Stage::post_resume}) {
    (void)story.tell(stage);
  }
  return out;
}

constexpr std::chrono::seconds kDeathTime{5};

struct Twin::State {
  explicit State(const image::Set& its_look) : look(its_look) {}
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  const image::Set& look;
  Skeleton skeleton;
  RestoreOptions options;
  std::vector<UniqueFd> inherited;
  Nobody nobody;
  UniqueFd pidfd;
  tracee::Thread seized;                // until a story owns it
  std::unique_ptr<RestoreStory> ahead;  // what was made before the tree was stopped
  std::unique_ptr<RestoreStory> story;
  bool let_go = false;
  Result<void> take_root(RestoreStory& by) {
    return by.take_root(std::move(seized), {skeleton.area_base, skeleton.area_size}, skeleton.park,
                        skeleton.receiver_pidfd);
  }
  ~State() {
    // Before grow() no story owns the skeleton.
    if (!let_go && story == nullptr && ahead == nullptr && pidfd) {
      ::syscall(SYS_pidfd_send_signal, pidfd.get(), SIGKILL, nullptr, 0);
      // Until its tracer has seen the end, the runtime, its parent, is not told of it (ptrace(2)).
      const tracee::Deadline deadline(kDeathTime);
      while (seized.tid().value != 0 && seized.wait(deadline).has_value()) {
      }
      seized.forget();
    }
  }
};

Twin::Twin(std::unique_ptr<State> state) : state_(std::move(state)) {}
Twin::Twin(Twin&&) noexcept = default;
Twin& Twin::operator=(Twin&&) noexcept = default;
Twin::~Twin() = default;

Result<Twin> Twin::adopt(Skeleton given, const image::Set& look) {
  auto state = std::make_unique<State>(look);
  FERRY_CHECK(raise_descriptor_limit());
  state->skeleton = std::move(given);
  const Skeleton& skeleton = state->skeleton;
  state->pidfd = UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, skeleton.root.value, 0)));
  if (!state->pidfd) {
    return sys_fail(fmt::format("pidfd_open({})", skeleton.root));
  }
  FERRY_TRY(state->seized, seize_root(skeleton.root));
  RestoreOptions& options = state->options;
  options.external_mounts = skeleton.external_mounts;
  options.cgroup_roots = skeleton.cgroup_roots;
  options.root = skeleton.root_directory;
  options.empty_net_namespace = true;
  options.tcp_established = true;    // what is in the images was decided where they were made
  options.orphan_pts_master = true;  // handed out already, by make_skeleton
  for (const InheritFd& theirs : skeleton.inherit_fds) {
    UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_getfd, state->pidfd.get(), theirs.fd, 0)));
    if (!fd) {
      return sys_fail(fmt::format("pidfd_getfd(skeleton {}, fd {})", skeleton.root, theirs.fd));
    }
    options.inherit_fds.push_back({theirs.key, fd.get()});
    state->inherited.push_back(std::move(fd));
  }
  return Twin(std::move(state));
}

Result<void> Twin::grow_ahead(int buffer) {
  State& s = *state_;
  auto story = std::make_unique<RestoreStory>(s.options, s.nobody);
  FERRY_CHECK(story->read(s.look));
  s.ahead = std::move(story);
  FERRY_CHECK(s.take_root(*s.ahead));
  return s.ahead->grow_ahead(buffer);
}

bool Twin::is_ahead(NsPid pid) const { return state_->ahead != nullptr && state_->ahead->is_ahead(pid); }

Result<void> Twin::write_ahead(NsPid pid, std::span<const sys::Placed> pages) {
  return state_->ahead->write_ahead(pid, pages);
}

Result<void> Twin::zero_ahead(NsPid pid, std::uint64_t vaddr, std::uint64_t bytes) {
  return state_->ahead->zero_ahead(pid, vaddr, bytes);
}

Result<void> Twin::drop_ahead(NsPid pid, const std::vector<sys::PageRange>& stale) {
  return state_->ahead == nullptr ? Result<void>() : state_->ahead->drop_ahead(pid, stale);
}

void Twin::hand_in(const std::vector<InheritFd>& descriptors) {
  auto& all = state_->options.inherit_fds;
  all.insert(all.end(), descriptors.begin(), descriptors.end());
}

Result<void> Twin::grow(int images_dir, Latecomers* late) {
  State& s = *state_;
  FERRY_TRY(image::Set set, image::load(images_dir));
  s.options.images_dir = images_dir;  // rooms look for contents of files there
  auto story = std::make_unique<RestoreStory>(s.options, s.nobody);
  FERRY_CHECK(story->read(std::move(set)));
  s.story = std::move(story);
  FERRY_CHECK(s.story->take_namespaces(s.skeleton.namespaces));
  if (s.ahead != nullptr) {
    FERRY_CHECK(s.story->take_over(*s.ahead));
  } else {
    FERRY_CHECK(s.take_root(*s.story));
    FERRY_CHECK(s.story->grow(-1));
  }
  FERRY_CHECK(s.story->renew_namespaces(s.look));
  FERRY_CHECK(s.story->dress(images_dir, late));
  return s.story->finish_threads();
}

Result<RestoreReport> Twin::resume() {
  State& s = *state_;
  FERRY_CHECK(s.story->let_go());
  s.let_go = true;
  RestoreReport report;
  report.root = s.skeleton.root;
  report.pages_restored = s.story->pages_restored();
  return report;
}

Result<void> Twin::outlive_us() { return state_->story->outlive_us(); }

Result<void> Twin::resume_untraced() { return state_->story->open_up(); }

Result<void> Twin::clean_up() { return state_->story->clean_up(); }

std::vector<Lap> Twin::laps() const {
  return state_->story == nullptr ? std::vector<Lap>() : state_->story->laps().all();
}

bool Twin::alive() const { return ::syscall(SYS_pidfd_send_signal, state_->pidfd.get(), 0, nullptr, 0) == 0; }

}  // namespace ferry::engine

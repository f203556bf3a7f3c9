#include "migrate/storage_out.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include <algorithm>
#include <chrono>

#include "base/log.h"
#include "container/layer_delta.h"
#include "image/proto/files.pb.h"
#include "image/proto/mm.pb.h"
#include "migrate/message.pb.h"
#include "migrate/pump.h"
#include "sys/file.h"

namespace ferry::migrate {
namespace {

using Clock = std::chrono::steady_clock;
using container::TreeChanges;
using wire::Message;

constexpr std::chrono::minutes kWork(10);
constexpr double kProgress = 0.7;

double ms_since(Clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
}

bool is_below(const std::string& path, const std::string& top) {
  return top == "/" ? path.starts_with('/') : path == top || (path.starts_with(top) && path[top.size()] == '/');
}

std::uint64_t to_ns(const timespec& time) {
  return static_cast<std::uint64_t>(time.tv_sec) * 1'000'000'000U + static_cast<std::uint64_t>(time.tv_nsec);
}

Result<std::map<std::string, std::string>> attributes_of(int fd, const std::string& subject) {
  std::map<std::string, std::string> out;
  const ssize_t size = ::flistxattr(fd, nullptr, 0);
  if (size <= 0) {
    return size == 0 || errno == ENOTSUP
               ? Result<std::map<std::string, std::string>>(std::move(out))
               : Result<std::map<std::string, std::string>>(sys_fail(fmt::format("flistxattr({})", subject)));
  }
  std::string names(static_cast<std::size_t>(size), '\0');
  const ssize_t listed = ::flistxattr(fd, names.data(), names.size());
  names.resize(static_cast<std::size_t>(std::max<ssize_t>(listed, 0)));
  for (std::size_t at = 0; at < names.size();) {
    const std::string name = names.c_str() + at;
    at += name.size() + 1;
    if (name.starts_with("trusted.overlay.")) {
      continue;  // the overlay's own
    }
    std::string value(65536, '\0');  // XATTR_SIZE_MAX
    const ssize_t got = ::fgetxattr(fd, name.c_str(), value.data(), value.size());
    if (got >= 0) {
      value.resize(static_cast<std::size_t>(got));
      out.emplace(name, std::move(value));
    }
  }
  return out;
}

// A destination that could not do it has decided, and says why.
Result<Message> answer_of(Link& control) {
  Message message;
  FERRY_CHECK(control.receive(message, kWork));
  if (message.has_refused()) {
    return fail(Kind::os, "{}: {}", control.peer(), message.refused().reason());
  }
  return message;
}

Result<void> wait_done(Link& control) {
  FERRY_TRY(const Message message, answer_of(control));
  if (!message.has_done()) {
    return fail(Kind::corrupt, "{} does not say that the files have arrived", control.peer());
  }
  return {};
}

}  // namespace

StorageOut::StorageOut(const container::Departure& departure)
    : cgroup_(departure.facts().freeze_cgroup), trees_(departure.trees()), ever_mapped_(trees_.size()) {
  const auto& copied = departure.volumes().copied;
  for (const container::Mount& mount : departure.container().mounts) {
    std::optional<std::size_t> tree;
    for (std::size_t i = 0; i < copied.size(); ++i) {
      if (mount.type == "volume" && !copied[i].is_shm() && copied[i].info.name == mount.name) {
        tree = i + 1;
      }
    }
    mounts_.emplace_back(mount.destination, tree);
  }
  for (std::size_t i = 0; i < copied.size(); ++i) {
    if (copied[i].is_shm()) {
      mounts_.emplace_back(copied[i].shown_at, i + 1);
      late_.insert(i + 1);
    }
  }
  mounts_.emplace_back("/", 0);
  std::stable_sort(mounts_.begin(), mounts_.end(),
                   [](const auto& a, const auto& b) { return a.first.size() > b.first.size(); });
}

// A path of the container, as which path of which tree; nothing if it is in none.
std::optional<std::pair<std::size_t, std::string>> StorageOut::place_of(const std::string& path) const {
  for (const auto& [top, tree] : mounts_) {
    if (!is_below(path, top)) {
      continue;
    }
    if (!tree.has_value() || path.size() <= top.size()) {
      return std::nullopt;
    }
    return std::pair(*tree, path.substr(top == "/" ? 1 : top.size() + 1));
  }
  return std::nullopt;
}

// Whoever maps a file now may write to it until it is looked at, and let it go before.
Result<void> StorageOut::remember_mapped() {
  FERRY_TRY(const auto mapped, container::mapped_files(cgroup_));
  for (const std::string& path : mapped) {
    if (const auto place = place_of("/" + path)) {
      ever_mapped_[place->first].insert(place->second);
    }
  }
  return {};
}

Result<void> StorageOut::send_all(Link& control, Link& way, const std::function<void(std::uint64_t)>& on_bytes) {
  std::vector<StorageWatch::Place> places;
  for (const container::LeavingTree& tree : trees_) {
    places.push_back({tree.directory(), &tree == &trees_.front()});
  }
  if (auto watch = StorageWatch::begin(places); watch.has_value()) {
    watch_.emplace(std::move(*watch));
  } else {
    why_it_looks_ = watch.error().message();
    log::debug("{}", why_it_looks_);
  }
  FERRY_CHECK(remember_mapped());
  for (std::size_t i = 0; i < trees_.size(); ++i) {
    if (late_.contains(i)) {
      continue;
    }
    Message message;
    message.mutable_layer()->set_tree(static_cast<std::uint32_t>(i));
    FERRY_CHECK(control.send(message));
    const std::uint64_t before = bytes_;
    FERRY_TRY(const std::uint64_t sent, send_written(
                                            way,
                                            [&](int fd) -> Result<void> {
                                              FERRY_CHECK(trees_[i].pack_all(fd));
                                              return {};
                                            },
                                            [&](std::uint64_t bytes) { on_bytes(before + bytes); }));
    bytes_ += sent;
    FERRY_CHECK(wait_done(control));
  }
  return {};
}

Result<double> StorageOut::send_changes(Link& control) {
  const auto begin = Clock::now();
  FERRY_CHECK(remember_mapped());
  FERRY_CHECK(
      send_tree_changes(control, control, {std::vector<std::set<std::string>>(trees_.size()), ever_mapped_}, false));
  before_ms_ = last_ms_;
  last_ms_ = ms_since(begin);
  return last_ms_;
}

bool StorageOut::worth_another(double pause_ms) const {
  return last_ms_ > pause_ms / 2 && (before_ms_ == 0 || last_ms_ <= kProgress * before_ms_);
}

// What the tree has open for writing, or has mapped: the set knows it without another look at /proc.
StorageOut::Suspects StorageOut::suspects_in(const image::Set& set) const {
  Suspects out{std::vector<std::set<std::string>>(trees_.size()), ever_mapped_};
  std::set<std::uint64_t> shared;  // ids of files
  for (const image::Name& name : set.names(image::Type::mm)) {
    for (const pb::MmEntry* mm : set.list<pb::MmEntry>(name)) {
      for (const pb::VmaEntry& vma : mm->vmas()) {
        if ((vma.flags() & MAP_TYPE) == MAP_SHARED) {
          shared.insert(vma.shmid());
        }
      }
    }
  }
  for (const pb::FileEntry* file : set.list<pb::FileEntry>({image::Type::files, 0})) {
    if (!file->has_reg() || (file->reg().flags() & O_ACCMODE) == O_RDONLY) {
      continue;
    }
    if (const auto place = place_of(file->reg().name())) {
      (shared.contains(file->id()) ? out.mapped : out.looked_at)[place->first].insert(place->second);
    }
  }
  return out;
}

Result<void> StorageOut::send_rest(Link& control, Link& way, const image::Set& set) {
  const std::uint64_t before = bytes_;
  FERRY_CHECK(send_tree_changes(control, way, suspects_in(set), true));
  rest_ = bytes_ - before;
  return {};
}

Result<void> StorageOut::send_tree_changes(Link& control, Link& way, Suspects suspects, bool freeze) {
  std::optional<std::vector<std::set<std::string>>> heard;
  if (watch_.has_value()) {
    FERRY_TRY(heard, watch_->heard());
    if (!heard.has_value()) {
      log::debug("the queue of fanotify ran over: all files are compared");
    }
  }
  for (std::size_t i = 0; i < trees_.size(); ++i) {
    std::optional<std::set<std::string>> named;
    if (heard.has_value() && !late_.contains(i)) {
      named.emplace(std::move((*heard)[i]));
      // A store through a mapping is heard when the file is closed at last, and need not have left a stamp since the
      // look: what was heard counts as changed.
      suspects.mapped[i].insert(named->begin(), named->end());
      named->insert(suspects.looked_at[i].begin(), suspects.looked_at[i].end());
    }
    late_.erase(i);
    FERRY_TRY(TreeChanges changes, trees_[i].changes(named, suspects.mapped[i]));
    for (auto path = changes.patched.begin(); path != changes.patched.end();) {
      // Read before anything is removed there, and sent after: a file that is not there is sent whole.
      const auto known = sums_.find({i, *path});
      bool there = known != sums_.end();
      if (!there) {
        Message ask;
        ask.mutable_blocks()->set_tree(static_cast<std::uint32_t>(i));
        ask.mutable_blocks()->set_path(*path);
        FERRY_CHECK(control.send(ask));
        FERRY_TRY(const Message answer, answer_of(control));
        if (!answer.has_block_sums()) {
          return fail(Kind::corrupt, "{} does not say what it has of a file", control.peer());
        }
        there = answer.block_sums().exists();
        if (there) {
          FERRY_TRY(sums_[std::pair(i, *path)], decode_sums(answer.block_sums().sums()));
        }
      }
      if (!there) {
        changes.packed.push_back(*path);
      }
      path = there ? path + 1 : changes.patched.erase(path);
    }
    for (const std::string& path : changes.packed) {
      sums_.erase({i, path});  // it will be another file there
    }
    if (!changes.removed.empty() || !changes.packed.empty() || changes.itself) {
      FERRY_CHECK(send_delta(control, way, i, changes, freeze));
    }
    for (const std::string& path : changes.patched) {
      FERRY_TRY(const bool sent, send_patch(control, way, i, path, freeze));
      if (!sent) {
        sums_.erase({i, path});
        trees_[i].distrust(path);
      }
    }
  }
  return {};
}

Result<void> StorageOut::send_delta(Link& control, Link& way, std::size_t tree, const TreeChanges& changes,
                                    bool freeze) {
  Message message;
  wire::Delta& delta = *message.mutable_delta();
  delta.set_tree(static_cast<std::uint32_t>(tree));
  delta.set_freeze(freeze);
  for (const std::string& path : changes.removed) {
    delta.add_removed(path);
  }
  FERRY_CHECK(control.send(message));
  FERRY_TRY(const std::uint64_t sent, send_written(way, [&](int fd) -> Result<void> {
              FERRY_CHECK(trees_[tree].pack(changes, !freeze, fd));
              return {};
            }));
  bytes_ += sent;
  if (!freeze) {
    FERRY_CHECK(wait_done(control));
  }
  return {};
}

Result<bool> StorageOut::send_patch(Link& control, Link& way, std::size_t tree, const std::string& path, bool freeze) {
  FERRY_TRY(const UniqueFd root, sys::open(trees_[tree].content(), O_PATH | O_DIRECTORY));
  const auto file = sys::open_in_root(root.get(), path, O_RDONLY | O_NOFOLLOW | O_NOATIME);
  if (!file) {
    if (!freeze && file.error().kind == Kind::gone) {
      return false;  // the next round tells
    }
    return tl::unexpected<Error>(file.error());
  }
  FERRY_TRY(const struct stat info, sys::stat_fd(file->get(), path));
  FERRY_TRY(const auto attributes, attributes_of(file->get(), path));
  Message message;
  wire::Patch& patch = *message.mutable_patch();
  patch.set_tree(static_cast<std::uint32_t>(tree));
  patch.set_path(path);
  patch.set_size(static_cast<std::uint64_t>(info.st_size));
  patch.set_mode(info.st_mode & 07777U);
  patch.set_uid(info.st_uid);
  patch.set_gid(info.st_gid);
  patch.set_atime_ns(to_ns(info.st_atim));
  patch.set_mtime_ns(to_ns(info.st_mtim));
  for (const auto& [name, value] : attributes) {
    (*patch.mutable_attributes())[name] = value;
  }
  patch.set_freeze(freeze);
  FERRY_CHECK(control.send(message));
  std::vector<BlockSum>& sums = sums_[std::pair(tree, path)];
  std::vector<std::byte> pending;
  const auto flush = [&]() -> Result<void> {
    bytes_ += pending.size();
    auto sent = pending.empty() ? Result<void>() : way.send_bulk(pending);
    pending.clear();
    return sent;
  };
  const auto made = make_patch(
      file->get(), sums,
      [&](std::span<const std::byte> piece) -> Result<void> {
        pending.insert(pending.end(), piece.begin(), piece.end());
        return pending.size() < (1U << 20) ? Result<void>() : flush();
      },
      path);
  FERRY_CHECK(made);
  FERRY_CHECK(flush());
  FERRY_CHECK(way.end_bulk());
  if (*made != static_cast<std::uint64_t>(info.st_size)) {
    // It has grown or shrunk in between: what is there has the size that was announced.  The next round asks again.
    sums_.erase({tree, path});
  }
  if (!freeze) {
    FERRY_CHECK(wait_done(control));
  }
  return true;
}

}  // namespace ferry::migrate

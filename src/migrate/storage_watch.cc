#include "migrate/storage_watch.h"

#include <fcntl.h>
#include <sys/fanotify.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "base/log.h"
#include "container/random_id.h"
#include "sys/file.h"
#include "sys/mount_api.h"

namespace ferry::migrate {
namespace {

constexpr std::uint64_t kMask =
    FAN_MODIFY | FAN_CLOSE_WRITE | FAN_ATTRIB | FAN_CREATE | FAN_DELETE | FAN_MOVED_FROM | FAN_MOVED_TO | FAN_ONDIR;
constexpr std::size_t kBuffer = 256 << 10;

std::uint64_t id_of(const __kernel_fsid_t& id) {
  std::uint64_t out = 0;
  static_assert(sizeof id == sizeof out);
  std::memcpy(&out, &id, sizeof out);
  return out;
}

Result<UniqueFd> make_queue() {
  // Without FAN_UNLIMITED_QUEUE: a busy host must not fill its memory with names for us.
  UniqueFd queue(::fanotify_init(FAN_CLASS_NOTIF | FAN_CLOEXEC | FAN_NONBLOCK | FAN_REPORT_DFID_NAME,
                                 O_RDONLY | O_LARGEFILE | O_CLOEXEC));
  if (!queue) {
    return fail(Kind::unsupported, "this kernel does not name files that change (fanotify_init: {})",
                std::string_view(std::strerror(errno)));
  }
  return queue;
}

Result<void> mark(int queue, const std::string& directory) {
  if (::fanotify_mark(queue, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, kMask, AT_FDCWD, directory.c_str()) != 0) {
    return fail(Kind::unsupported, "the filesystem of {} does not name files that change (fanotify_mark: {})",
                directory, std::string_view(std::strerror(errno)));
  }
  return {};
}

class Scratch {  // a directory that goes away
 public:
  static Result<Scratch> make(const std::string& beside) {
    FERRY_TRY(const std::string id, container::random_id());
    Scratch out;
    out.path_ = fmt::format("{}.ferry-probe-{}", beside, id);
    for (const char* part : {"", "/lower", "/upper", "/work"}) {
      if (::mkdir((out.path_ + part).c_str(), 0700) != 0) {
        return sys_fail(fmt::format("mkdir({}{})", out.path_, part));
      }
    }
    return out;
  }
  Scratch(Scratch&& other) noexcept : path_(std::exchange(other.path_, std::string())) {}
  Scratch& operator=(Scratch&&) = delete;
  ~Scratch() {
    std::error_code ignored;
    if (!path_.empty()) {
      std::filesystem::remove_all(path_, ignored);
    }
  }
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  Scratch() = default;
  std::string path_;
};

// Kernels have differed in whether an overlay's own writes to its upper files are told.
Result<void> hear_an_overlay(const std::string& upper) {
  FERRY_TRY(const Scratch scratch, Scratch::make(upper));
  FERRY_TRY(const UniqueFd fs, sys::fs_open("overlay"));
  FERRY_CHECK(sys::fs_set_string(fs.get(), "lowerdir", scratch.path() + "/lower"));
  FERRY_CHECK(sys::fs_set_string(fs.get(), "upperdir", scratch.path() + "/upper"));
  FERRY_CHECK(sys::fs_set_string(fs.get(), "workdir", scratch.path() + "/work"));
  FERRY_CHECK(sys::fs_create(fs.get()));
  FERRY_TRY(const UniqueFd mount, sys::fs_mount(fs.get(), "overlay"));
  FERRY_TRY(const UniqueFd file, sys::open_at(mount.get(), "probe", O_WRONLY | O_CREAT, 0600));
  FERRY_TRY(const UniqueFd queue, make_queue());
  // This directory only, so that whatever else happens on the host is not taken for the answer.
  if (::fanotify_mark(queue.get(), FAN_MARK_ADD, FAN_MODIFY | FAN_EVENT_ON_CHILD, AT_FDCWD,
                      (scratch.path() + "/upper").c_str()) != 0) {
    return sys_fail("fanotify_mark(probe)");
  }
  FERRY_CHECK(sys::write_all(file.get(), "x", 1, "probe"));
  std::array<char, 4096> event{};
  if (::read(queue.get(), event.data(), event.size()) <= 0) {
    return fail(Kind::unsupported, "this kernel does not tell of what is written through an overlay");
  }
  return {};
}

}  // namespace

Result<StorageWatch> StorageWatch::begin(const std::vector<Place>& places) {
  StorageWatch out;
  FERRY_TRY(out.queue_, make_queue());
  std::set<std::uint64_t> marked;
  for (const Place& place : places) {
    if (place.overlay) {
      auto told = hear_an_overlay(place.directory);
      if (!told && told.error().kind != Kind::unsupported) {
        return fail(Kind::unsupported, "it could not be tried whether writes through an overlay are told: {}",
                    told.error().message());
      }
      FERRY_CHECK(told);
    }
    Watched watched;
    FERRY_TRY(watched.root, sys::open(place.directory, O_RDONLY | O_DIRECTORY));
    FERRY_TRY(watched.path, sys::read_link(fmt::format("/proc/self/fd/{}", watched.root.get())));
    struct statfs info {};
    if (::fstatfs(watched.root.get(), &info) != 0) {
      return sys_fail(fmt::format("fstatfs({})", place.directory));
    }
    static_assert(sizeof info.f_fsid == sizeof watched.filesystem);
    std::memcpy(&watched.filesystem, &info.f_fsid, sizeof watched.filesystem);
    if (marked.insert(watched.filesystem).second) {
      FERRY_CHECK(mark(out.queue_.get(), place.directory));
    }
    out.watched_.push_back(std::move(watched));
  }
  return out;
}

Result<std::optional<std::vector<std::set<std::string>>>> StorageWatch::heard() {
  std::vector<std::set<std::string>> out(watched_.size());
  bool all = false;
  known_.clear();
  std::vector<char> buffer(kBuffer);
  for (;;) {
    const ssize_t got = ::read(queue_.get(), buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) {
      continue;
    }
    if (got < 0 && errno == EAGAIN) {
      break;
    }
    if (got < 0) {
      return sys_fail("read(fanotify)");
    }
    // An event may begin at any multiple of four bytes (FANOTIFY_EVENT_ALIGN), so its numbers are copied out.
    std::span<const char> rest(buffer.data(), static_cast<std::size_t>(got));
    for (fanotify_event_metadata event{}; rest.size() >= sizeof event; rest = rest.subspan(event.event_len)) {
      std::memcpy(&event, rest.data(), sizeof event);
      if (event.vers != FANOTIFY_METADATA_VERSION) {
        return fail(Kind::unsupported, "fanotify speaks version {} here", event.vers);
      }
      if (event.event_len < sizeof event || event.event_len > rest.size()) {
        return fail(Kind::corrupt, "an event of fanotify has {} bytes", event.event_len);
      }
      if ((event.mask & FAN_Q_OVERFLOW) != 0) {
        all = true;
        continue;
      }
      if (auto named = read_event(rest.data(), out); !named) {
        log::debug("{}", named.error().message());
        all = true;
      }
    }
  }
  if (all) {
    return std::optional<std::vector<std::set<std::string>>>();
  }
  return std::optional(std::move(out));
}

// fanotify(7): records follow the metadata; that of the directory holds its handle and, after it, the name.
Result<void> StorageWatch::read_event(const char* event, std::vector<std::set<std::string>>& out) {
  fanotify_event_metadata head{};
  std::memcpy(&head, event, sizeof head);
  std::size_t at = head.metadata_len;
  while (at + sizeof(fanotify_event_info_header) <= head.event_len) {
    fanotify_event_info_header info{};
    std::memcpy(&info, event + at, sizeof info);
    if (info.len < sizeof info || at + info.len > head.event_len) {
      return fail(Kind::corrupt, "an event of fanotify is not what it has to be");
    }
    const char* record = event + at;
    at += info.len;
    if (info.info_type != FAN_EVENT_INFO_TYPE_DFID_NAME) {
      continue;
    }
    fanotify_event_info_fid fid{};
    std::memcpy(&fid, record, sizeof fid);
    const char* handle = record + sizeof fid;
    file_handle shape{};
    std::memcpy(&shape, handle, sizeof shape);
    const std::uint64_t filesystem = id_of(fid.fsid);
    const std::string key(record + sizeof info, sizeof fid - sizeof info + sizeof shape + shape.handle_bytes);
    const std::string name(handle + sizeof shape + shape.handle_bytes);
    // For each place by a mount of its own: the same filesystem may be mounted at several.
    for (std::size_t i = 0; i < watched_.size(); ++i) {
      if (watched_[i].filesystem != filesystem) {
        continue;
      }
      auto known = known_.find({i, key});
      if (known == known_.end()) {
        std::string directory;
        const UniqueFd opened(::open_by_handle_at(
            watched_[i].root.get(), reinterpret_cast<file_handle*>(const_cast<char*>(handle)), O_PATH | O_CLOEXEC));
        if (!opened && errno != ESTALE) {
          return sys_fail("open_by_handle_at");
        }
        if (opened) {  // a directory that is gone was named by the one above it
          FERRY_TRY(directory, sys::read_link(fmt::format("/proc/self/fd/{}", opened.get())));
        }
        known = known_.emplace(std::pair(i, key), std::move(directory)).first;
      }
      add(watched_[i].path, known->second, name, out[i]);
    }
  }
  return {};
}

// `directory` is as the kernel prints it, and empty if it is gone.
void StorageWatch::add(const std::string& top, const std::string& directory, const std::string& name,
                       std::set<std::string>& out) {
  if (directory != top && !(directory.starts_with(top) && directory[top.size()] == '/')) {
    return;
  }
  std::string path = directory == top ? std::string() : directory.substr(top.size() + 1);
  if (name != ".") {
    path += (path.empty() ? "" : "/") + name;
  }
  out.insert(path.empty() ? "." : path);
}

}  // namespace ferry::migrate

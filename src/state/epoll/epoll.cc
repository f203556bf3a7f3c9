#include "state/epoll/epoll.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <optional>
#include <set>
#include <thread>
#include <unordered_map>

#include "sys/file.h"
#include "sys/kcmp.h"

namespace ferry::state {
namespace {

class EpollKind : public FileKind {
 public:
  [[nodiscard]] std::string_view name() const override { return "epoll"; }
  [[nodiscard]] pb::FdType type() const override { return pb::FD_EVENTPOLL; }
  [[nodiscard]] bool matches(const FdProbe& probe) const override { return probe.link == "anon_inode:[eventpoll]"; }

  Result<void> collect(const FdProbe& probe, DumpContext& context, pb::FileEntry& out) override {
    pb::EventpollFileEntry& entry = *out.mutable_epfd();
    entry.set_id(out.id());
    entry.set_flags(probe.status_flags());
    FERRY_TRY(std::vector<EpollWatch> watches, parse_epoll(probe.info).during("{}", probe.subject()));
    const std::uint32_t id = out.id();
    lists_[id] = {&probe.task, probe.fd, probe.ours, probe.subject(), std::move(watches)};
    return collect_fown(probe, context, *entry.mutable_fown());
  }

  // Now all descriptions have their numbers, and fdinfo images say who has which.
  Result<void> finish(DumpContext& context) override {
    const Tables tables(context.set);
    for (const image::Entry& e : context.set.entries({image::Type::files})) {
      auto& file = static_cast<pb::FileEntry&>(*e.message);
      const auto list = file.type() == pb::FD_EVENTPOLL ? lists_.find(file.id()) : lists_.end();
      if (list != lists_.end()) {
        FERRY_CHECK(resolve(list->second, file.id(), tables, context, *file.mutable_epfd()));
      }
    }
    return {};
  }

  Result<UniqueFd> open(const pb::FileEntry& file, RestoreContext&) override {
    UniqueFd fd(::epoll_create1(EPOLL_CLOEXEC));
    if (!fd) {
      return sys_fail("epoll_create1");
    }
    FERRY_CHECK(restore_status_flags(fd.get(), file.epfd().flags()));
    return fd;
  }

  Result<void> connect(const pb::FileEntry& file, int fd, RestoreContext& context) override {
    opened_.push_back(&file);
    return restore_fown(fd, file.epfd().fown(), context);
  }

  // A signalfd wakes whoever watches it through the signal handlers of the task that added the watch
  // (signalfd_poll and signalfd_notify in the kernel's fs/signalfd.c and include/linux/signalfd.h), so nobody
  // else can add it.  If several tasks have both descriptors it was the first of them: others got them by
  // fork(2).
  Result<void> settle(const pb::FileEntry& file, const pb::FdinfoEntry& row, RestoreTask& task, RestoreContext& context,
                      tracee::Batch& batch) override {
    const pb::EventpollFileEntry& entry = file.epfd();
    for (int i = 0; i < entry.tfd_size(); ++i) {
      const pb::EventpollTfdEntry& watch = entry.tfd(i);
      if (watch.id() != 0 && !is_signalfd(watch.id(), context)) {
        continue;
      }
      if (!tables_) {
        tables_.emplace(context.set);
      }
      const std::uint32_t id = tables_->at(task.ids->files_id(), watch.tfd());
      const bool is_it = id != 0 && (watch.id() == 0 ? is_signalfd(id, context) : id == watch.id());
      if (!is_it || !of_tasks_.insert({file.id(), i}).second) {
        continue;
      }
      epoll_event event{};
      event.events = watch.events();
      event.data.u64 = watch.data();
      batch.must("epoll_ctl(signalfd)", SYS_epoll_ctl, {row.fd(), EPOLL_CTL_ADD, watch.tfd(), batch.object(event)});
    }
    return {};
  }

  // A watch remembers the number that its file had when it was added, whatever that number is now, so it is
  // added in a table of descriptors where numbers can be given freely: that of a thread of its own.
  Result<void> complete(RestoreContext& context) override {
    if (opened_.empty()) {
      return {};
    }
    const Tables tables(context.set);
    Result<void> outcome;
    std::thread([&] {
      if (::unshare(CLONE_FILES) != 0) {
        outcome = sys_fail("unshare(CLONE_FILES)");
        return;
      }
      for (const pb::FileEntry* file : opened_) {
        outcome = add_watches(*file, tables, of_tasks_, context).during("epoll descriptor {}", file->id());
        if (!outcome.has_value()) {
          return;
        }
      }
    }).join();
    opened_.clear();
    of_tasks_.clear();
    return outcome;
  }

 private:
  struct List {
    DumpTask* task;  // that it was met in
    int fd;          // its number there, -1 if it was met in flight
    int ours;
    std::string subject;
    std::vector<EpollWatch> watches;
  };

  // Which file each descriptor of each table is, and who has a file.
  class Tables {
   public:
    explicit Tables(const image::Set& set) {
      for (const image::Name& name : set.names(image::Type::fdinfo)) {
        for (const auto* row : set.list<pb::FdinfoEntry>(name)) {
          ids_[name.id][row->fd()] = row->id();
          if (row->type() == pb::FD_EVENTPOLL) {
            holders_[row->id()].push_back(name.id);
          }
        }
      }
    }
    // The file that is `number` in a table that has epoll descriptor `epoll` too; 0: none.
    template <class Accept>
    [[nodiscard]] std::uint32_t find(std::uint32_t epoll, std::uint32_t number, Accept accept) const {
      const auto holders = holders_.find(epoll);
      for (const std::uint64_t table : holders == holders_.end() ? std::vector<std::uint64_t>() : holders->second) {
        const auto row = ids_.at(table).find(number);
        if (row != ids_.at(table).end() && accept(row->second)) {
          return row->second;
        }
      }
      return 0;
    }

    [[nodiscard]] std::uint32_t at(std::uint64_t table, std::uint32_t number) const {
      const auto numbers = ids_.find(table);
      if (numbers == ids_.end()) {
        return 0;
      }
      const auto row = numbers->second.find(number);
      return row == numbers->second.end() ? 0 : row->second;
    }

   private:
    std::map<std::uint64_t, std::unordered_map<std::uint32_t, std::uint32_t>> ids_;
    std::map<std::uint32_t, std::vector<std::uint64_t>> holders_;
  };

  static Result<void> resolve(const List& list, std::uint32_t id, const Tables& tables, DumpContext& context,
                              pb::EventpollFileEntry& entry) {
    std::map<int, std::uint32_t> position;  // of the next watch with the same number
    std::vector<int> targets;
    for (const EpollWatch& watch : list.watches) {
      FERRY_TRY(const std::uint32_t target, find(list, id, watch, position[watch.fd]++, tables, context));
      if (target == 0) {
        return fail(Kind::unsupported,
                    "{} watches a file that was its descriptor {} and is not open in the tree now (inode {}, device "
                    "{:#x})",
                    list.subject, watch.fd, watch.inode, watch.dev);
      }
      pb::EventpollTfdEntry& out = *entry.add_tfd();
      out.set_id(target);
      out.set_tfd(static_cast<std::uint32_t>(watch.fd));
      out.set_events(watch.events);
      out.set_data(watch.data);
      out.set_dev(watch.dev);
      out.set_inode(watch.inode);
      out.set_pos(watch.pos);
      targets.push_back(context.files.ours(target));
    }
    if (!may_be_polled(list, targets)) {
      return {};
    }
    pollfd self{list.ours, POLLIN, 0};
    const bool quiet = ::poll(&self, 1, 0) == 0;
    for (std::size_t i = 0; quiet && i < targets.size(); ++i) {
      if (was_told(list.watches[i], targets[i])) {
        entry.mutable_tfd(static_cast<int>(i))->set_ferry_told(true);
      }
    }
    return {};
  }

  // To poll is not only to look: what was ready and is not any more leaves the list, and a signalfd is ready for those
  // only who have the signals (signalfd(2)), not for us.  So nobody polls without need, nor one that watches such.
  static bool may_be_polled(const List& list, const std::vector<int>& targets) {
    const bool useful = std::any_of(list.watches.begin(), list.watches.end(), [](const EpollWatch& watch) {
      return (watch.events & (EPOLLET | EPOLLONESHOT)) != 0;
    });
    struct stat own {};
    if (!useful || ::fstat(list.ours, &own) != 0) {
      return false;
    }
    for (std::size_t i = 0; i < targets.size(); ++i) {
      // All anonymous inodes have one number (fs/anon_inodes.c).
      if (list.watches[i].inode != own.st_ino) {
        continue;
      }
      const auto link = sys::read_link(fmt::format("/proc/self/fd/{}", targets[i]));
      if (!link.has_value() || *link == "anon_inode:[signalfd]" || *link == "anon_inode:[eventpoll]") {
        return false;
      }
    }
    return true;
  }

  // Nothing waits to be fetched, and yet the file is ready: it was told of that, once.
  static bool was_told(const EpollWatch& watch, int target) {
    if ((watch.events & (EPOLLET | EPOLLONESHOT)) == 0) {
      return false;
    }
    // A new edge in the moments until the program runs must not be taken for the old one, so only of files that
    // nothing but the tree makes ready; an edge too much is harmless where one too few is not.
    struct stat st {};
    if (::fstat(target, &st) != 0 || !(S_ISFIFO(st.st_mode) || is_unix(target) || is_eventfd(target))) {
      return false;
    }
    // The low bits of EPOLL* are those of POLL* (poll.h of the kernel).
    pollfd p{target, static_cast<short>(watch.events & 0x7fff), 0};
    return ::poll(&p, 1, 0) == 1;
  }
  static bool is_unix(int fd) {
    int domain = 0;
    socklen_t size = sizeof domain;
    return ::getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) == 0 && domain == AF_UNIX;
  }
  static bool is_eventfd(int fd) {
    const auto link = sys::read_link(fmt::format("/proc/self/fd/{}", fd));
    return link.has_value() && *link == "anon_inode:[eventfd]";
  }

  // The id of the watched description: as a rule it still has its number, or it was duplicated elsewhere.
  static Result<std::uint32_t> find(const List& list, std::uint32_t id, const EpollWatch& watch, std::uint32_t position,
                                    const Tables& tables, const DumpContext& context) {
    const HostPid self(::getpid());
    const bool has_number = list.fd >= 0;
    const HostPid owner = has_number ? list.task->pid : self;
    const int epoll = has_number ? list.fd : list.ours;
    Result<void> failure;
    const auto is_it = [&](int ours) {
      auto same = sys::is_watched_file(self, ours, owner, epoll, watch.fd, position).during("{}", list.subject);
      if (!same.has_value()) {
        failure = tl::unexpected(std::move(same).error());
        return false;
      }
      return *same;
    };
    const std::uint32_t in_place = tables.find(id, static_cast<std::uint32_t>(watch.fd), [&](std::uint32_t candidate) {
      return context.files.ours(candidate) >= 0 && is_it(context.files.ours(candidate));
    });
    FERRY_CHECK(std::move(failure));
    if (in_place != 0) {
      return in_place;
    }
    const dev_t device = makedev(watch.dev >> 20, watch.dev & 0xfffff);
    for (const auto& [candidate, ours] : context.files.of_inode(device, watch.inode)) {
      if (is_it(ours)) {
        return candidate;
      }
      FERRY_CHECK(std::move(failure));
    }
    return 0U;
  }

  static bool is_signalfd(std::uint32_t id, const RestoreContext& context) {
    const pb::FileEntry* const entry = context.files.entry(id);
    return entry != nullptr && entry->type() == pb::FD_SIGNALFD;
  }

  using Watches = std::set<std::pair<std::uint32_t, int>>;  // epoll descriptor, place in its list

  static Result<void> add_watches(const pb::FileEntry& file, const Tables& tables, const Watches& done,
                                  RestoreContext& context) {
    const pb::EventpollFileEntry& entry = file.epfd();
    // First what was told before, which is told once more now, to us.
    for (const bool told : {true, false}) {
      int count = 0;
      for (int i = 0; i < entry.tfd_size(); ++i) {
        const pb::EventpollTfdEntry& watch = entry.tfd(i);
        if (watch.ferry_told() == told && !done.contains({file.id(), i})) {
          FERRY_CHECK(add(file, watch, tables, context));
          ++count;
        }
      }
      if (told && count > 0) {
        FERRY_TRY(const int epoll, context.files.get(file.id()));
        std::vector<epoll_event> room(static_cast<std::size_t>(count));
        if (::epoll_wait(epoll, room.data(), count, 0) < 0) {
          return sys_fail("epoll_wait");
        }
      }
    }
    return {};
  }

  static Result<void> add(const pb::FileEntry& file, const pb::EventpollTfdEntry& watch, const Tables& tables,
                          RestoreContext& context) {
    // Images of CRIU do not say which file it was (id 0), only its number.
    const std::uint32_t id =
        watch.id() != 0 ? watch.id() : tables.find(file.id(), watch.tfd(), [](std::uint32_t) { return true; });
    if (id == 0 || watch.tfd() > 0x7fffffff) {
      return fail(Kind::corrupt, "no process that has it has a descriptor {}, which it watches", watch.tfd());
    }
    FERRY_TRY(const int target, context.files.get(id));
    FERRY_TRY(const int epoll, context.files.get(file.id()));
    const int number = static_cast<int>(watch.tfd());
    // All numbers of ours are copies here.  What is in the way is put aside: it may be a target of the next.
    UniqueFd aside;
    if (number != target) {
      aside.reset(::fcntl(number, F_DUPFD_CLOEXEC, number + 1));
      if (::dup3(target, number, O_CLOEXEC) < 0) {
        return sys_fail(fmt::format("dup3({}, {})", target, number));
      }
    }
    epoll_event event{};
    event.events = watch.events();
    event.data.u64 = watch.data();
    const int through = number == epoll && aside ? aside.get() : epoll;
    const int added = ::epoll_ctl(through, EPOLL_CTL_ADD, number, &event);
    const int error = errno;
    if (number != target) {
      if (aside) {
        if (::dup3(aside.get(), number, O_CLOEXEC) < 0) {
          return sys_fail(fmt::format("dup3({}, {})", aside.get(), number));
        }
      } else {
        ::close(number);
      }
    }
    if (added != 0) {
      return sys_fail(error, fmt::format("epoll_ctl(descriptor {})", watch.tfd()));
    }
    return {};
  }

  std::map<std::uint32_t, List> lists_;       // checkpoint, by id
  std::vector<const pb::FileEntry*> opened_;  // restore
  std::optional<Tables> tables_;              // restore, once it is needed
  Watches of_tasks_;                          // restore, added by a task itself
};

// "5 events: 19 data: 5  pos:0 ino:61af sdev:7" (Documentation/filesystems/proc.rst, "Eventpoll files").
std::optional<EpollWatch> parse_watch(std::string_view text) {
  const auto field = [&](std::string_view label, int base) -> std::optional<std::uint64_t> {
    auto at = label.empty() ? 0 : text.find(label);
    if (at == std::string_view::npos) {
      return std::nullopt;
    }
    at = text.find_first_not_of(' ', at + label.size());
    if (at == std::string_view::npos) {
      return std::nullopt;
    }
    return sys::parse_number(text.substr(at, text.find(' ', at) - at), base);
  };
  const auto fd = field("", 10);
  const auto events = field(" events:", 16);
  const auto data = field(" data:", 16);
  if (!fd || *fd > 0x7fffffff || !events || *events > 0xffffffff || !data) {
    return std::nullopt;
  }
  EpollWatch watch{static_cast<int>(*fd), static_cast<std::uint32_t>(*events), *data, 0, 0, 0};
  watch.pos = field(" pos:", 10).value_or(0);
  watch.inode = field(" ino:", 16).value_or(0);
  watch.dev = static_cast<std::uint32_t>(field(" sdev:", 16).value_or(0));
  return watch;
}

}  // namespace

Result<std::vector<EpollWatch>> parse_epoll(const sys::FdInfo& info) {
  std::vector<EpollWatch> out;
  for (const auto& [key, value] : info.rest) {
    if (key != "tfd") {
      continue;
    }
    const auto watch = parse_watch(value);
    if (!watch) {
      return fail(Kind::corrupt, "fdinfo of an epoll descriptor has the line \"tfd: {}\"", value);
    }
    out.push_back(*watch);
  }
  return out;
}

std::unique_ptr<FileKind> make_epoll_kind() { return std::make_unique<EpollKind>(); }

}  // namespace ferry::state

#include "state/epoll/epoll.h"

#include <sys/epoll.h>
#include <sys/syscall.h>

#include <map>

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
    lists_.push_back({out.id(), probe.task.pid, probe.fd, probe.subject(), std::move(watches)});
    return collect_fown(probe, context, *entry.mutable_fown());
  }

  // Now all descriptions have their numbers, and fdinfo images say who has which.
  Result<void> finish(DumpContext& context) override {
    for (const image::Entry& e : context.set.entries({image::Type::files})) {
      auto& file = static_cast<pb::FileEntry&>(*e.message);
      for (const List& list : lists_) {
        if (file.type() == pb::FD_EVENTPOLL && file.id() == list.id) {
          FERRY_CHECK(resolve(list, context, *file.mutable_epfd()));
        }
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
    return restore_fown(fd, file.epfd().fown(), context);
  }

  Result<void> settle(const pb::FileEntry& file, const pb::FdinfoEntry& descriptor, RestoreTask& task,
                      RestoreContext& context, tracee::Batch& batch) override {
    const pb::EventpollFileEntry& entry = file.epfd();
    std::vector<bool>& done = done_[entry.id()];
    done.resize(static_cast<std::size_t>(entry.tfd_size()), false);
    const auto numbers = context.set.list<pb::FdinfoEntry>({image::Type::fdinfo, task.ids->files_id()});
    for (int i = 0; i < entry.tfd_size(); ++i) {
      const pb::EventpollTfdEntry& watch = entry.tfd(i);
      if (done[static_cast<std::size_t>(i)] || !has(numbers, watch)) {
        continue;
      }
      done[static_cast<std::size_t>(i)] = true;
      epoll_event event{};
      event.events = watch.events();
      event.data.u64 = watch.data();
      batch.must("adding a watch to an epoll descriptor", SYS_epoll_ctl,
                 {descriptor.fd(), EPOLL_CTL_ADD, watch.tfd(), batch.object(event)});
    }
    return {};
  }

 private:
  struct List {
    std::uint32_t id;
    HostPid pid;  // of the task that it was met in
    int fd;       // and its number there
    std::string subject;
    std::vector<EpollWatch> watches;
  };

  // Does the task have the watched file under the watched number?  Images of CRIU do not say which
  // file it was (id 0), only its number.
  static bool has(const std::vector<const pb::FdinfoEntry*>& numbers, const pb::EventpollTfdEntry& watch) {
    for (const pb::FdinfoEntry* n : numbers) {
      if (n->fd() == watch.tfd()) {
        return watch.id() == 0 || n->id() == watch.id();
      }
    }
    return false;
  }

  static Result<void> resolve(const List& list, DumpContext& context, pb::EventpollFileEntry& entry) {
    std::map<int, std::uint32_t> position;  // of the next watch with the same number
    for (const EpollWatch& watch : list.watches) {
      FERRY_TRY(const std::uint32_t target, find(list, watch, position[watch.fd]++, context));
      if (target == 0) {
        return fail(Kind::unsupported,
                    "{} watches a file that was its descriptor {} and is open elsewhere now (inode {}, device {:#x}); "
                    "the program closed the descriptor without removing the watch",
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
    }
    return {};
  }

  // The id of the watched description, if a task that has this epoll descriptor too has it under its
  // number; 0 if none has.
  static Result<std::uint32_t> find(const List& list, const EpollWatch& watch, std::uint32_t position,
                                    DumpContext& context) {
    for (const auto& task : context.tasks) {
      if (task->zombie || task->ids == nullptr) {
        continue;
      }
      bool holder = false;
      std::uint32_t candidate = 0;
      for (const auto* n : context.set.list<pb::FdinfoEntry>({image::Type::fdinfo, task->ids->files_id()})) {
        holder |= n->id() == list.id;
        candidate = n->fd() == static_cast<std::uint32_t>(watch.fd) ? n->id() : candidate;
      }
      if (!holder || candidate == 0) {
        continue;
      }
      FERRY_TRY(const bool same, sys::is_watched_file(task->pid, watch.fd, list.pid, list.fd, watch.fd, position)
                                     .during("{}", list.subject));
      if (same) {
        return candidate;
      }
    }
    return 0U;
  }

  std::vector<List> lists_;                               // checkpoint
  std::map<std::uint32_t, std::vector<bool>> done_;       // restore: watches that some task has made
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

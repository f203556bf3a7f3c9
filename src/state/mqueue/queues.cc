#include "state/mqueue/queues.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <optional>
#include <string>

#include "base/log.h"
#include "image/proto/ipc.pb.h"
#include "state/dump.h"
#include "state/file_kind.h"
#include "state/mqueue/kernel_queues.h"
#include "state/nsids/nsids.h"
#include "sys/device.h"
#include "sys/file.h"
#include "sys/mount_api.h"

namespace ferry::state::mqueue {
namespace {

constexpr std::string_view kGone = " (deleted)";

std::int64_t nanoseconds(const timespec& time) { return time.tv_sec * 1'000'000'000LL + time.tv_nsec; }

// Of a thread that has joined the namespace: shows the queues of it, mounted in the tree or not (mq_overview(7)).
// Nothing on a kernel without message queues.
Result<UniqueFd> mount_of_our_own() {
  auto fs = sys::fs_open("mqueue");
  if (!fs.has_value() && fs.error().os_errno == ENODEV) {
    return UniqueFd();
  }
  FERRY_TRY(const UniqueFd created, std::move(fs));
  FERRY_CHECK(sys::fs_create(created.get()));
  return sys::fs_mount(created.get(), "mqueue");
}

// Descriptors of a table that tasks share are listed with the first of them.
bool is_first_of_table(const DumpContext& context, const DumpTask& task) {
  const auto first = std::find_if(context.tasks.begin(), context.tasks.end(), [&](const auto& t) {
    return !t->zombie && t->ids->files_id() == task.ids->files_id();
  });
  return first != context.tasks.end() && first->get() == &task;
}

}  // namespace

struct Queues::File {
  std::uint32_t id;
  std::uint64_t inode;
  std::uint32_t flags;
  std::uint64_t pos;
  std::string name;  // of the queue, where it has or had one
  std::string path;  // if it was not opened with mq_open(3)
  bool unlinked;
};

Queues::Queues() = default;
Queues::~Queues() = default;

Result<void> Queues::open(Inside& inside) {
  FERRY_TRY(mount_, inside.get<UniqueFd>(mount_of_our_own).during("message queues of the tree"));
  if (!mount_) {
    return {};
  }
  FERRY_TRY(const auto st, sys::stat_fd(mount_.get(), "message queues of the tree"));
  if (!files_.empty() && st.st_dev != device_) {
    return fail(Kind::os, "the tree has changed its ipc namespace while it was looked at");
  }
  device_ = st.st_dev;
  FERRY_TRY(const auto names, sys::list_directory(mount_.get(), "."));
  if (!names.empty()) {
    if (const auto ready = reader(); !ready.has_value()) {
      log::debug("message queues: {}", ready.error().message());
    }
  }
  return {};
}

Result<void> Queues::check_other(Inside& inside) {
  FERRY_TRY(const UniqueFd mount, inside.get<UniqueFd>(mount_of_our_own));
  if (!mount) {
    return {};
  }
  FERRY_TRY(const auto st, sys::stat_fd(mount.get(), "message queues"));
  others_.insert(sys::kernel_device(st.st_dev));
  FERRY_TRY(const auto names, sys::list_directory(mount.get(), "."));
  if (!names.empty()) {
    return fail(Kind::unsupported, "POSIX message queue /{} is of an ipc namespace that is not that of the root task",
                names.front());
  }
  return {};
}

Result<const KernelQueues*> Queues::reader() {
  if (reader_ == nullptr) {
    FERRY_TRY(KernelQueues opened, KernelQueues::open());
    reader_ = std::make_shared<const KernelQueues>(std::move(opened));
  }
  return reader_.get();
}

void Queues::use(std::shared_ptr<const KernelQueues> reader) { reader_ = std::move(reader); }

Result<void> Queues::add(const FdProbe& probe, DumpContext& context, std::uint32_t id) {
  FERRY_TRY(const NamespaceIds namespaces, NamespaceIds::of(context.set));
  if (!namespaces.is_new(NsKind::ipc) || probe.stat.st_dev != device_) {
    return fail(Kind::unsupported, "{}: a POSIX message queue of an ipc namespace that is not the tree's own",
                probe.subject());
  }
  // What mq_open(3) was told, O_CLOEXEC with it: unlike open(2) it keeps that with the file.
  const int flags = ::fcntl(probe.ours, F_GETFL);
  if (flags < 0) {
    return sys_fail(fmt::format("fcntl(F_GETFL) of {}", probe.subject()));
  }
  File file{.id = id,
            .inode = probe.stat.st_ino,
            .flags = static_cast<std::uint32_t>(flags),
            .pos = probe.info.pos,
            .name = {},
            .path = {},
            .unlinked = probe.stat.st_nlink == 0};
  std::string link = probe.link;
  if (file.unlinked && link.ends_with(kGone)) {
    link.resize(link.size() - kGone.size());
  }
  // mq_open(3) opens on a mount of the kernel's own, whose root is what /proc shows.
  const std::size_t slash = link.rfind('/');
  file.name = link.substr(slash + 1);
  if (slash != 0) {
    file.path = link;
    if (namespace_of(*probe.task.ids, NsKind::mnt) != namespace_of(*context.root().ids, NsKind::mnt)) {
      return fail(Kind::unsupported, "{}: a POSIX message queue that was opened on a mount which not all tasks see",
                  probe.subject());
    }
  }
  files_.push_back(std::move(file));
  return {};
}

Result<void> Queues::collect(DumpContext& context, pb::IpcVarEntry& out) {
  if (!mount_) {
    return {};
  }
  for (const File& file : files_) {
    pb::FerryMessageQueueFile& to = *out.add_ferry_queue_files();
    to.set_id(file.id);
    to.set_inode(file.inode);
    to.set_flags(file.flags);
    to.set_pos(file.pos);
    if (!file.path.empty()) {
      to.set_path(file.path);
    }
    const auto same = [&](const pb::FerryMessageQueue& q) { return q.inode() == file.inode; };
    if (file.unlinked && std::none_of(out.ferry_queues().begin(), out.ferry_queues().end(), same)) {
      pb::FerryMessageQueue& queue = *out.add_ferry_queues();
      queue.set_unlinked(true);
      FERRY_CHECK(describe(context, context.files.ours(file.id), file.name, queue));
    }
  }
  FERRY_TRY(const auto names, sys::list_directory(mount_.get(), "."));
  for (const std::string& name : names) {
    FERRY_TRY(const UniqueFd queue, sys::open_at(mount_.get(), name, O_RDONLY));
    FERRY_CHECK(describe(context, queue.get(), name, *out.add_ferry_queues()));
  }
  return {};
}

Result<void> Queues::describe(DumpContext& context, int queue, const std::string& name, pb::FerryMessageQueue& out) {
  const auto ready = reader();
  if (!ready.has_value()) {
    return fail(Kind::unsupported, "POSIX message queue /{}: its messages cannot be looked at without taking them: {}",
                name, ready.error().message());
  }
  FERRY_TRY(const auto st, sys::stat_fd(queue, name));
  out.set_inode(st.st_ino);
  out.set_name(name);
  out.set_mode(st.st_mode & 07777);
  out.set_uid(st.st_uid);
  out.set_gid(st.st_gid);
  out.set_atime_ns(nanoseconds(st.st_atim));
  out.set_mtime_ns(nanoseconds(st.st_mtim));
  FERRY_TRY(Content content, (*ready)->read(queue).during("POSIX message queue /{}", name));
  out.set_max_messages(content.max_messages);
  out.set_message_size(content.message_size);
  for (Message& message : content.messages) {
    pb::FerryMessage& to = *out.add_messages();
    to.set_priority(message.priority);
    to.set_text(std::move(message.text));
  }
  if (!content.notice.has_value()) {
    return {};
  }
  const Notice& notice = *content.notice;
  const DumpTask* owner = context.find(HostPid(static_cast<pid_t>(notice.pid)));
  if (owner == nullptr) {
    return fail(Kind::unsupported,
                "POSIX message queue /{}: a process outside of the tree (pid {}) waits to be notified", name,
                notice.pid);
  }
  if (notice.method != SIGEV_SIGNAL && notice.method != SIGEV_NONE) {
    return fail(Kind::unsupported,
                "POSIX message queue /{}: pid {} waits for a notification by SIGEV_THREAD, which cannot be carried",
                name, owner->pid);
  }
  // Whoever closes one of its descriptors of the queue gives its notification up (mq_close(3)), so it has one, unless
  // the table is that of another process as well.
  const bool has_one =
      is_first_of_table(context, *owner) && std::any_of(files_.begin(), files_.end(), [&](const File& file) {
        if (file.inode != st.st_ino) {
          return false;
        }
        const auto rows = context.set.list<pb::FdinfoEntry>({image::Type::fdinfo, owner->ids->files_id()});
        return std::any_of(rows.begin(), rows.end(), [&](const auto* row) { return row->id() == file.id; });
      });
  if (!has_one) {
    return fail(Kind::unsupported,
                "POSIX message queue /{}: pid {} waits for a notification with a descriptor of another process", name,
                owner->pid);
  }
  pb::FerryMessageNotice& to = *out.mutable_notice();
  to.set_pid(owner->ns_pid.value);
  to.set_method(notice.method);
  to.set_signal(notice.signal);
  to.set_value(notice.value);
  return {};
}

}  // namespace ferry::state::mqueue

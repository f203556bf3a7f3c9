#include "state/mqueue/mqueue.h"

#include <fcntl.h>
#include <mqueue.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <map>
#include <memory>
#include <optional>
#include <set>

#include "image/proto/ipc.pb.h"
#include "state/dump_host.h"
#include "state/ipc/limits.h"
#include "state/mqueue/account.h"
#include "state/mqueue/kernel_queues.h"
#include "state/nsids/nsids.h"
#include "sys/as_user.h"
#include "sys/file.h"

namespace ferry::state {
namespace {

constexpr long kMessageQueues = 0x19800202;  // MQUEUE_MAGIC of the kernel

timespec as_timespec(std::int64_t ns) { return {ns / 1'000'000'000, ns % 1'000'000'000}; }

// A queue may be larger than the limits of its namespace are now: they count when it is made (mq_overview(7)).  Written
// while the queues are made, and put back.  For a thread that has joined the namespace.
class Headroom {
 public:
  explicit Headroom(int sysctl) : sysctl_(sysctl) {}
  Headroom(const Headroom&) = delete;
  Headroom& operator=(const Headroom&) = delete;
  Result<void> want(const char* limit, std::uint64_t value) {
    const std::string file = fmt::format("fs/mqueue/{}", limit);
    FERRY_TRY(const std::uint64_t now, ipc::read_limit(sysctl_, file));
    if (now >= value) {
      return {};
    }
    FERRY_CHECK(ipc::write_limit(sysctl_, file, std::to_string(value)));
    changed_.emplace_back(file, now);
    return {};
  }
  Result<void> put_back() {
    for (const auto& [file, value] : changed_) {
      FERRY_CHECK(ipc::write_limit(sysctl_, file, std::to_string(value)));
    }
    return {};
  }

 private:
  int sysctl_;
  std::vector<std::pair<std::string, std::uint64_t>> changed_;
};

class MqueueKind final : public FileKind {
 public:
  [[nodiscard]] std::string_view name() const override { return "message queue"; }
  [[nodiscard]] pb::FdType type() const override { return pb::FD_EXT; }

  // A queue that has its name is seen in its namespace; one that lost it only here.
  void prepare(int proc, int fd, const std::string& link) override {
    struct statfs fs {};
    if (reader_ != nullptr || !link.starts_with('/') || !link.ends_with(" (deleted)") ||
        ::statfs(fmt::format("/proc/self/fd/{}/fd/{}", proc, fd).c_str(), &fs) != 0 || fs.f_type != kMessageQueues) {
      return;
    }
    if (auto opened = mqueue::KernelQueues::open(); opened.has_value()) {
      reader_ = std::make_shared<const mqueue::KernelQueues>(std::move(*opened));
    }
  }

  [[nodiscard]] bool matches(const FdProbe& probe) const override {
    if (!S_ISREG(probe.stat.st_mode)) {
      return false;
    }
    const auto [known, is_new] = of_queues_.try_emplace(probe.stat.st_dev, false);
    struct statfs fs {};
    if (is_new) {
      known->second = ::fstatfs(probe.ours, &fs) == 0 && fs.f_type == kMessageQueues;
    }
    return known->second;
  }

  Result<void> collect(const FdProbe& probe, DumpContext& context, pb::FileEntry& out) override {
    if ((probe.info.flags & O_PATH) != 0) {
      return fail(Kind::unsupported, "{}: a descriptor of a POSIX message queue that was opened with O_PATH",
                  probe.subject());
    }
    if (reader_ != nullptr) {
      context.host.queues().use(reader_);
    }
    FERRY_CHECK(context.host.queues().add(probe, context, out.id()));
    out.mutable_ext()->set_id(out.id());
    return collect_fown(probe, context, *out.mutable_ext()->mutable_fown());
  }

  // All queues, and at once every open file of them: one that was unlinked has its name only until the next is made.
  Result<void> begin(RestoreContext& context) override {
    FERRY_TRY(const NamespaceIds ids, NamespaceIds::of(context.set));
    if (!ids.is_new(NsKind::ipc)) {
      return {};
    }
    FERRY_TRY(saved_, context.set.one<pb::IpcVarEntry>({image::Type::ipcns_var, ids.id(NsKind::ipc)}));
    if (saved_->ferry_queues().empty()) {
      return {};
    }
    FERRY_CHECK(mqueue::raise_limit());
    FERRY_TRY(const UniqueFd sysctl, sys::open("/proc/sys", O_PATH | O_DIRECTORY));
    return context.inside.run([&]() -> Result<void> {
      Headroom headroom(sysctl.get());
      FERRY_CHECK(headroom.want("queues_max", static_cast<std::uint64_t>(saved_->ferry_queues_size())));
      for (const pb::FerryMessageQueue& queue : saved_->ferry_queues()) {
        FERRY_CHECK(headroom.want("msg_max", queue.max_messages()));
        FERRY_CHECK(headroom.want("msgsize_max", queue.message_size()));
      }
      for (const bool unlinked : {true, false}) {
        for (const pb::FerryMessageQueue& queue : saved_->ferry_queues()) {
          if (queue.unlinked() == unlinked) {
            FERRY_CHECK(make(queue).during("message queue /{}", queue.name()));
          }
        }
      }
      return headroom.put_back();
    });
  }

  Result<UniqueFd> open(const pb::FileEntry& entry, RestoreContext&) override {
    const auto found = files_.find(entry.id());
    if (found == files_.end() || !found->second) {
      return fail(Kind::unsupported, "file {} was saved by a plugin of CRIU", entry.id());
    }
    return std::move(found->second);
  }

  Result<void> connect(const pb::FileEntry& entry, int fd, RestoreContext& context) override {
    return restore_fown(fd, entry.ext().fown(), context);
  }

  // Whoever closes a descriptor of a queue gives its notification up (mq_close(3)): it comes once a task has closed all
  // that it does not keep, and after the messages, which would use it up.
  Result<void> settle(const pb::FileEntry& entry, const pb::FdinfoEntry& row, RestoreTask& task, RestoreContext&,
                      tracee::Batch& batch) override {
    const pb::FerryMessageQueue* queue = queue_of(entry.id());
    if (queue == nullptr || !queue->has_notice() || queue->notice().pid() != task.ns_pid().value ||
        !notified_.insert(queue->inode()).second) {
      return {};
    }
    sigevent event{};
    event.sigev_notify = static_cast<int>(queue->notice().method());
    event.sigev_signo = static_cast<int>(queue->notice().signal());
    event.sigev_value.sival_ptr = reinterpret_cast<void*>(queue->notice().value());
    batch.must("mq_notify", SYS_mq_notify, {row.fd(), batch.object(event)});
    return {};
  }

  // Sending and registering have changed the times of the file.
  Result<void> complete(RestoreContext&) override {
    if (saved_ == nullptr) {
      return {};
    }
    for (const pb::FerryMessageQueue& queue : saved_->ferry_queues()) {
      if (queue.has_notice() && !notified_.contains(queue.inode())) {
        return fail(Kind::corrupt, "message queue /{} is to notify pid {}, which has no descriptor of it", queue.name(),
                    queue.notice().pid());
      }
      const timespec times[] = {as_timespec(queue.atime_ns()), as_timespec(queue.mtime_ns())};
      if (const auto made = made_.find(queue.inode());
          made != made_.end() && ::futimens(made->second.get(), times) != 0) {
        return sys_fail(fmt::format("futimens(message queue /{})", queue.name()));
      }
    }
    made_.clear();
    return {};
  }

 private:
  [[nodiscard]] const pb::FerryMessageQueue* queue_of(std::uint32_t file) const {
    const auto& files = saved_->ferry_queue_files();
    const auto& queues = saved_->ferry_queues();
    const auto f = std::find_if(files.begin(), files.end(), [&](const auto& e) { return e.id() == file; });
    const auto q = std::find_if(queues.begin(), queues.end(),
                                [&](const auto& e) { return f != files.end() && e.inode() == f->inode(); });
    return q == queues.end() ? nullptr : &*q;
  }

  Result<void> make(const pb::FerryMessageQueue& queue) {
    const std::string name = "/" + queue.name();
    mq_attr attributes{};
    attributes.mq_maxmsg = static_cast<long>(queue.max_messages());
    attributes.mq_msgsize = static_cast<long>(queue.message_size());
    UniqueFd made;
    // What it takes is on the account of the user who makes it (getrlimit(2), RLIMIT_MSGQUEUE); and a user namespace
    // takes nothing of a group that it does not know (open(2), EOVERFLOW).
    FERRY_CHECK(sys::as_user({queue.uid(), queue.uid(), queue.gid()}, [&]() -> Result<void> {
      made = UniqueFd(::mq_open(name.c_str(), O_RDWR | O_CREAT | O_EXCL | O_NONBLOCK | O_CLOEXEC, 0600, &attributes));
      if (!made) {
        return sys_fail("mq_open()");
      }
      return {};
    }));
    if (::fchown(made.get(), queue.uid(), queue.gid()) != 0 || ::fchmod(made.get(), queue.mode()) != 0) {
      return sys_fail("setting its owner and mode");
    }
    for (const pb::FerryMessage& message : queue.messages()) {
      if (::mq_send(made.get(), message.text().data(), message.text().size(), message.priority()) != 0) {
        return sys_fail("mq_send()");
      }
    }
    for (const pb::FerryMessageQueueFile& file : saved_->ferry_queue_files()) {
      if (file.inode() == queue.inode()) {
        FERRY_TRY(files_[file.id()], open_file(file, name));
      }
    }
    if (queue.unlinked() && ::mq_unlink(name.c_str()) != 0) {
      return sys_fail("mq_unlink()");
    }
    made_[queue.inode()] = std::move(made);
    return {};
  }

  static Result<UniqueFd> open_file(const pb::FerryMessageQueueFile& file, const std::string& name) {
    const int flags = static_cast<int>(file.flags());
    UniqueFd out;
    if (file.has_path()) {
      FERRY_TRY(out, sys::open(file.path(), flags));
    } else {
      // Without O_CLOEXEC: every descriptor of a queue is closed by exec(2) (mq_open(3)), and the flag would stay
      // visible.
      out = UniqueFd(::mq_open(name.c_str(), flags));
    }
    if (!out) {
      return sys_fail(fmt::format("mq_open({:#x})", flags));
    }
    if (file.pos() != 0 && ::lseek(out.get(), static_cast<off_t>(file.pos()), SEEK_SET) < 0) {
      return sys_fail("lseek()");
    }
    return out;
  }

  // Of a checkpoint.
  std::shared_ptr<const mqueue::KernelQueues> reader_;
  mutable std::map<dev_t, bool> of_queues_;  // by filesystem, each looked at once
  // Of a restore.
  const pb::IpcVarEntry* saved_ = nullptr;
  std::map<std::uint64_t, UniqueFd> made_;   // by their inodes of the checkpoint
  std::map<std::uint32_t, UniqueFd> files_;  // by number in files.img, until they are asked for
  std::set<std::uint64_t> notified_;
};

}  // namespace

std::unique_ptr<FileKind> make_mqueue_kind() { return std::make_unique<MqueueKind>(); }

}  // namespace ferry::state

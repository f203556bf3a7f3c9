#include "state/fifo/fifo.h"

#include <fcntl.h>
#include <sys/ioctl.h>

#include <map>
#include <set>

#include "state/pipe/pipe.h"
#include "sys/file.h"

namespace ferry::state {
namespace {

class FifoKind : public FileKind {
 public:
  [[nodiscard]] std::string_view name() const override { return "FIFO"; }
  [[nodiscard]] pb::FdType type() const override { return pb::FD_FIFO; }

  [[nodiscard]] bool matches(const FdProbe& probe) const override {
    return S_ISFIFO(probe.stat.st_mode) && !probe.link.starts_with("pipe:[") &&
           (probe.info.flags & O_PATH) == 0;
  }

  Result<void> collect(const FdProbe& probe, DumpContext& context, pb::FileEntry& out) override {
    if (probe.stat.st_nlink == 0) {
      return fail(Kind::unsupported, "{}: a FIFO that has no name any more cannot be carried over", probe.subject());
    }
    pb::FifoEntry& entry = *out.mutable_fifo();
    entry.set_id(out.id());
    entry.set_pipe_id(static_cast<std::uint32_t>(probe.stat.st_ino));
    FERRY_TRY(const std::uint32_t path,
              context.files.add_path(context, probe.task, probe.ours, probe.link, probe.status_flags()));
    entry.set_regf_id(path);
    if ((probe.status_flags() & O_ACCMODE) != O_WRONLY && seen_.insert(entry.pipe_id()).second) {
      FERRY_TRY(const PipeContent content, peek_pipe(probe.ours, probe.subject()));
      add_pipe_content(context.set, image::Type::fifo_data, entry.pipe_id(), content);
    }
    return {};
  }

  Result<UniqueFd> open(const pb::FileEntry& file, RestoreContext& context) override {
    const pb::FifoEntry& entry = file.fifo();
    FERRY_TRY(const pb::RegFileEntry* path, path_of(entry, context));
    const auto open_path = [&](int flags) {
      return context.inside.get<UniqueFd>([&] { return sys::open(path->name(), flags); });
    };
    // With a descriptor for both directions in our hands no open of one direction waits (fifo(7)).
    if (!keepers_.contains(entry.pipe_id())) {
      FERRY_TRY(UniqueFd keeper, open_path(O_RDWR | O_NONBLOCK));
      FERRY_TRY(const struct stat st, sys::stat_fd(keeper.get(), path->name()));
      int held = 0;
      if (!S_ISFIFO(st.st_mode) || ::ioctl(keeper.get(), FIONREAD, &held) != 0) {
        return fail(Kind::corrupt, "{} is not a FIFO any more", path->name());
      }
      // Bytes that are in it now were kept by a process outside of the tree: they are the same ones.
      if (held == 0) {
        FERRY_CHECK(fill_pipe(keeper.get(), context.set, image::Type::fifo_data, entry.pipe_id(), false)
                        .during("filling {}", path->name()));
      }
      keepers_.emplace(entry.pipe_id(), std::move(keeper));
    }
    FERRY_TRY(UniqueFd fd, open_path(static_cast<int>(path->flags())));
    FERRY_CHECK(restore_status_flags(fd.get(), path->flags()));
    return fd;
  }

  Result<void> connect(const pb::FileEntry& file, int fd, RestoreContext& context) override {
    FERRY_TRY(const pb::RegFileEntry* path, path_of(file.fifo(), context));
    return restore_fown(fd, path->fown(), context);
  }

  // Everything is open now; an end that the tree does not have must not be kept open by us.
  Result<void> settle(const pb::FileEntry&, const pb::FdinfoEntry&, RestoreTask&, RestoreContext&,
                      tracee::Batch&) override {
    keepers_.clear();
    return {};
  }

 private:
  static Result<const pb::RegFileEntry*> path_of(const pb::FifoEntry& entry, RestoreContext& context) {
    const pb::FileEntry* path = context.files.entry(entry.regf_id());
    if (path == nullptr || !path->has_reg()) {
      return fail(Kind::corrupt, "FIFO {} has no path", entry.id());
    }
    return &path->reg();
  }

  std::set<std::uint32_t> seen_;               // checkpoint: FIFOs whose bytes are saved
  std::map<std::uint32_t, UniqueFd> keepers_;  // restore
};

}  // namespace

std::unique_ptr<FileKind> make_fifo_kind() { return std::make_unique<FifoKind>(); }

}  // namespace ferry::state

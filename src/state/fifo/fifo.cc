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
    return S_ISFIFO(probe.stat.st_mode) && !probe.link.starts_with("pipe:[") && (probe.info.flags & O_PATH) == 0;
  }

  Result<void> collect(const FdProbe& probe, DumpContext& context, pb::FileEntry& out) override {
    pb::FifoEntry& entry = *out.mutable_fifo();
    entry.set_id(out.id());
    entry.set_pipe_id(static_cast<std::uint32_t>(probe.stat.st_ino));
    FERRY_TRY(const std::uint32_t path,
              context.files.add_path(context, probe.task, probe.ours, probe.link, probe.status_flags()));
    entry.set_regf_id(path);
    if (!seen_.contains(entry.pipe_id())) {
      FERRY_TRY(const UniqueFd reader, readable(probe));
      if (reader) {
        seen_.insert(entry.pipe_id());
        FERRY_TRY(const PipeContent content, peek_pipe(reader.get(), probe.subject()));
        add_pipe_content(context.set, image::Type::fifo_data, entry.pipe_id(), content);
      }
    }
    return {};
  }

  Result<UniqueFd> open(const pb::FileEntry& file, RestoreContext& context) override {
    const pb::FifoEntry& entry = file.fifo();
    FERRY_TRY(const pb::RegFileEntry* path, path_of(entry, context));
    const auto open_path = [&](int flags) { return context.files.open_path(*path, flags); };
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
        auto contents = index_pipe_contents(context.set, image::Type::fifo_data);
        FERRY_CHECK(fill_pipe(keeper.get(), contents[entry.pipe_id()], path->name(), false));
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
  // A descriptor to look at its bytes with; none if they will be seen by another descriptor, or if there are none.
  static Result<UniqueFd> readable(const FdProbe& probe) {
    if ((probe.status_flags() & O_ACCMODE) != O_WRONLY) {
      return sys::duplicate(probe.ours);
    }
    // Bytes outlive the last reader as long as there is a writer (fifo(7)); who opens it next reads them.
    int held = 0;
    if (::ioctl(probe.ours, FIONREAD, &held) != 0) {
      return sys_fail(fmt::format("ioctl({}, FIONREAD)", probe.subject()));
    }
    return held == 0 ? Result<UniqueFd>(UniqueFd())
                     : sys::open(fmt::format("/proc/self/fd/{}", probe.ours), O_RDONLY | O_NONBLOCK);
  }

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

#include "state/locks/locks.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/syscall.h>

#include <array>
#include <cerrno>
#include <limits>

#include "sys/file.h"

namespace ferry::state::locks {
namespace {

// "1:", "POSIX", "ADVISORY", "WRITE", "1234", "fe:00:10953018", "0", "EOF"
std::vector<std::string_view> words_of(std::string_view text) {
  std::vector<std::string_view> out;
  while (true) {
    const auto start = text.find_first_not_of(' ');
    if (start == std::string_view::npos) {
      return out;
    }
    text.remove_prefix(start);
    const auto size = std::min(text.find(' '), text.size());
    out.push_back(text.substr(0, size));
    text.remove_prefix(size);
  }
}

std::optional<Sort> sort_of(std::string_view word) {
  constexpr std::array<std::pair<std::string_view, Sort>, 4> names{
      {{"POSIX", Sort::posix}, {"FLOCK", Sort::flock}, {"OFDLCK", Sort::ofd}, {"LEASE", Sort::lease}}};
  for (const auto& [name, sort] : names) {
    if (word == name) {
      return sort;
    }
  }
  return std::nullopt;
}

std::optional<std::uint32_t> type_of(std::string_view word) {
  if (word == "READ") {
    return F_RDLCK;
  }
  if (word == "WRITE") {
    return F_WRLCK;
  }
  return word == "UNLCK" ? std::optional<std::uint32_t>(F_UNLCK) : std::nullopt;
}

constexpr std::uint32_t kBreaking = 4;  // FileLockEntry.type, beside F_RDLCK and F_WRLCK

std::uint32_t held_before(const RestoreTask& task, const RestoreContext& context, const pb::FileLockEntry& entry,
                          std::uint32_t target) {
  if (target == F_RDLCK) {
    return F_WRLCK;
  }
  for (const auto* row : context.set.list<pb::FdinfoEntry>({image::Type::fdinfo, task.ids->files_id()})) {
    const pb::FileEntry* file =
        row->fd() == static_cast<std::uint32_t>(entry.fd()) ? context.files.entry(row->id()) : nullptr;
    if (file != nullptr && (status_flags_of(*file, context.files) & O_ACCMODE) == O_RDONLY) {
      return F_RDLCK;
    }
  }
  return F_WRLCK;
}

// Somebody opens the file, as somebody did before: the lease is being broken from then on.  The holder was
// told at that time, so its owner is taken away for the moment (fcntl(2), F_SETLEASE).
Result<void> break_lease(const pb::FileLockEntry& lock, const pb::FileEntry& file, RestoreContext& context) {
  FERRY_TRY(const int ours, context.files.get(file.id()));
  const f_owner_ex nobody{F_OWNER_PID, 0};
  if (::fcntl(ours, F_SETOWN_EX, &nobody) != 0) {
    return sys_fail("fcntl(F_SETOWN_EX, nobody)");
  }
  const bool to_reading = (lock.type() & ~kBreaking) == F_RDLCK;
  const auto opened = sys::open(fmt::format("/proc/self/fd/{}", ours), (to_reading ? O_RDONLY : O_WRONLY) | O_NONBLOCK);
  if (opened.has_value() || opened.error().os_errno != EWOULDBLOCK) {
    return fail(Kind::os, "the lease through descriptor {} of pid {} could not be broken again", lock.fd(), lock.pid());
  }
  return file.has_reg() ? restore_fown(ours, file.reg().fown(), context) : Result<void>();
}

}  // namespace

Result<Lock> parse_lock(std::string_view text) {
  const auto corrupt = [&] { return fail(Kind::corrupt, "fdinfo has the lock \"{}\"", text); };
  const auto words = words_of(text);
  if (words.size() != 8) {
    return corrupt();
  }
  const auto sort = sort_of(words[1]);
  const auto type = type_of(words[3]);
  const auto start = sys::parse_number(words[6]);
  const bool to_end = words[7] == "EOF";
  const auto end = to_end ? std::optional<std::uint64_t>(0) : sys::parse_number(words[7]);
  constexpr std::uint64_t most = std::numeric_limits<std::int64_t>::max();
  if (!sort || !type || !start || !end || *start > most || *end > most || (!to_end && *end < *start)) {
    return corrupt();
  }
  Lock lock;
  lock.sort = *sort;
  lock.type = *type;
  lock.breaking = *sort == Sort::lease && words[2] != "ACTIVE";
  lock.start = static_cast<std::int64_t>(*start);
  lock.length = to_end ? 0 : static_cast<std::int64_t>(*end - *start) + 1;
  return lock;
}

Result<void> collect(const FdProbe& probe, DumpContext& context) {
  for (const auto& [key, value] : probe.info.rest) {
    if (key != "lock") {
      continue;
    }
    FERRY_TRY(const Lock lock, parse_lock(value).during("{}", probe.subject()));
    if (!context.options.file_locks) {
      return fail(Kind::unsupported, "{}: the file is locked; --file-locks carries locks over", probe.subject());
    }
    pb::FileLockEntry entry;
    entry.set_flag(static_cast<std::uint32_t>(lock.sort));
    entry.set_type(lock.type | (lock.breaking ? kBreaking : 0));
    entry.set_pid(probe.task.ns_pid.value);
    entry.set_fd(probe.fd);
    entry.set_start(lock.start);
    entry.set_len(lock.length);
    context.set.add({image::Type::filelocks}, std::move(entry));
  }
  return {};
}

Result<void> restore(RestoreTask& task, RestoreContext& context, tracee::Batch& batch) {
  for (const auto* entry : context.set.list<pb::FileLockEntry>({image::Type::filelocks})) {
    if (entry->pid() != task.ns_pid().value) {
      continue;
    }
    const bool breaking = (entry->type() & kBreaking) != 0;
    // What a lease is being broken to is all that the kernel tells.  Down to reading: it was for writing.
    // Down to nothing: as a rule for what the descriptor is open for.
    const std::uint32_t target = entry->type() & ~kBreaking;
    const std::uint32_t type = breaking ? held_before(task, context, *entry, target) : target;
    struct flock range {};
    range.l_type = static_cast<short>(type);
    range.l_whence = SEEK_SET;
    range.l_start = entry->start();
    range.l_len = entry->len();
    switch (static_cast<Sort>(entry->flag())) {
      case Sort::posix:
        batch.must("taking a POSIX file lock", SYS_fcntl, {entry->fd(), F_SETLK, batch.object(range)});
        break;
      case Sort::ofd:
        batch.must("taking an OFD file lock", SYS_fcntl, {entry->fd(), F_OFD_SETLK, batch.object(range)});
        break;
      case Sort::flock:
        batch.must("taking a flock", SYS_flock, {entry->fd(), (type == F_RDLCK ? LOCK_SH : LOCK_EX) | LOCK_NB});
        break;
      case Sort::lease:
        batch.must("taking a lease", SYS_fcntl, {entry->fd(), F_SETLEASE, type});
        break;
      default:
        return fail(Kind::corrupt, "filelocks.img has a lock of kind {}", entry->flag());
    }
  }
  return {};
}

Result<void> break_leases(RestoreContext& context) {
  for (const auto* entry : context.set.list<pb::FileLockEntry>({image::Type::filelocks})) {
    if (static_cast<Sort>(entry->flag()) != Sort::lease || (entry->type() & kBreaking) == 0) {
      continue;
    }
    const RestoreTask* task = context.find(NsPid(entry->pid()));
    if (task == nullptr || task->ids == nullptr) {
      return fail(Kind::corrupt, "filelocks.img has a lease of pid {}, which is not in the set", entry->pid());
    }
    for (const auto* row : context.set.list<pb::FdinfoEntry>({image::Type::fdinfo, task->ids->files_id()})) {
      const pb::FileEntry* file = context.files.entry(row->id());
      if (row->fd() == static_cast<std::uint32_t>(entry->fd()) && file != nullptr) {
        FERRY_CHECK(break_lease(*entry, *file, context));
      }
    }
  }
  return {};
}

}  // namespace ferry::state::locks

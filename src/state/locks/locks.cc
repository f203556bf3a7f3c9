#include "state/locks/locks.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/syscall.h>

#include <array>
#include <limits>

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
    if (lock.breaking) {
      return fail(Kind::unsupported, "{}: its lease is being broken by another process; try again", probe.subject());
    }
    pb::FileLockEntry entry;
    entry.set_flag(static_cast<std::uint32_t>(lock.sort));
    entry.set_type(lock.type);
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
    const std::uint32_t type = entry->type() & ~kBreaking;
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

}  // namespace ferry::state::locks

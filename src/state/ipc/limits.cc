#include "state/ipc/limits.h"

#include <sys/stat.h>

#include <functional>
#include <string>
#include <vector>

#include "sys/as_user.h"
#include "sys/file.h"
#include "sys/proc.h"

namespace ferry::state::ipc {
namespace {

struct Limit {
  const char* file;
  std::function<std::uint64_t(const pb::IpcVarEntry&)> get;
  std::function<void(pb::IpcVarEntry&, std::uint64_t)> set;
};

#define FERRY_LIMIT(FILE, FIELD)                                                                        \
  Limit {                                                                                               \
    FILE, [](const pb::IpcVarEntry& e) { return std::uint64_t{e.FIELD()}; },                            \
        [](pb::IpcVarEntry& e, std::uint64_t v) { e.set_##FIELD(static_cast<decltype(e.FIELD())>(v)); } \
  }

const std::vector<Limit>& limits() {
  static const std::vector<Limit> kLimits = {
      FERRY_LIMIT("kernel/msgmax", msg_ctlmax),
      FERRY_LIMIT("kernel/msgmnb", msg_ctlmnb),
      FERRY_LIMIT("kernel/msgmni", msg_ctlmni),
      FERRY_LIMIT("kernel/auto_msgmni", auto_msgmni),
      FERRY_LIMIT("kernel/shmmax", shm_ctlmax),
      FERRY_LIMIT("kernel/shmall", shm_ctlall),
      FERRY_LIMIT("kernel/shmmni", shm_ctlmni),
      FERRY_LIMIT("kernel/shm_rmid_forced", shm_rmid_forced),
      FERRY_LIMIT("fs/mqueue/queues_max", mq_queues_max),
      FERRY_LIMIT("fs/mqueue/msg_max", mq_msg_max),
      FERRY_LIMIT("fs/mqueue/msgsize_max", mq_msgsize_max),
      FERRY_LIMIT("fs/mqueue/msg_default", mq_msg_default),
      FERRY_LIMIT("fs/mqueue/msgsize_default", mq_msgsize_default),
  };
  return kLimits;
}
#undef FERRY_LIMIT

constexpr const char* kSemaphores = "kernel/sem";

std::vector<std::uint64_t> numbers_of(std::string_view text) {
  std::vector<std::uint64_t> out;
  while (!text.empty()) {
    const std::size_t start = std::min(text.find_first_not_of(" \t\n"), text.size());
    text.remove_prefix(start);
    const std::size_t end = std::min(text.find_first_of(" \t\n"), text.size());
    if (const auto number = sys::parse_number(text.substr(0, end))) {
      out.push_back(*number);
    }
    text.remove_prefix(end);
  }
  return out;
}

}  // namespace

Result<std::uint64_t> read_limit(int sysctl, const std::string& file) {
  FERRY_TRY(const std::string text, sys::read_file_at(sysctl, file));
  const auto numbers = numbers_of(text);
  if (numbers.size() != 1) {
    return fail(Kind::corrupt, "/proc/sys/{} is not one number: {}", file, text);
  }
  return numbers.front();
}

// Only the root user of the user namespace that owns the ipc namespace may (ipc_permissions in ipc/ipc_sysctl.c), and
// the files are shown as his; no capability takes the place of that.
Result<void> write_limit(int sysctl, const std::string& file, const std::string& text) {
  struct stat st {};
  if (::fstatat(sysctl, file.c_str(), &st, 0) != 0) {
    return sys_fail(fmt::format("stat(/proc/sys/{})", file));
  }
  return sys::as_user({st.st_uid, st.st_uid}, [&] { return sys::write_file_at(sysctl, file, text); });
}

Result<pb::IpcVarEntry> read_limits(int sysctl) {
  pb::IpcVarEntry out;
  FERRY_TRY(const std::string sem, sys::read_file_at(sysctl, kSemaphores));
  for (const std::uint64_t number : numbers_of(sem)) {
    out.add_sem_ctls(static_cast<std::uint32_t>(number));
  }
  for (const Limit& limit : limits()) {
    FERRY_TRY(const std::uint64_t value, read_limit(sysctl, limit.file));
    limit.set(out, value);
  }
  // The next_id files read -1 unless somebody is in the middle of choosing a number: then CRIU keeps it.
  for (const auto& [file, set] : {std::pair{"kernel/msg_next_id", &pb::IpcVarEntry::set_msg_next_id},
                                  std::pair{"kernel/sem_next_id", &pb::IpcVarEntry::set_sem_next_id},
                                  std::pair{"kernel/shm_next_id", &pb::IpcVarEntry::set_shm_next_id}}) {
    FERRY_TRY(const std::string text, sys::read_file_at(sysctl, file));
    const auto numbers = numbers_of(text);
    if (numbers.size() == 1) {
      (out.*set)(static_cast<std::uint32_t>(numbers.front()));
    }
  }
  return out;
}

Result<void> write_limits(int sysctl, const pb::IpcVarEntry& wanted) {
  FERRY_TRY(const std::string sem, sys::read_file_at(sysctl, kSemaphores));
  const auto present = numbers_of(sem);
  if (!std::equal(present.begin(), present.end(), wanted.sem_ctls().begin(), wanted.sem_ctls().end())) {
    std::string text;
    for (const std::uint32_t number : wanted.sem_ctls()) {
      text += fmt::format("{} ", number);
    }
    FERRY_CHECK(write_limit(sysctl, kSemaphores, text));
  }
  for (const Limit& limit : limits()) {
    FERRY_TRY(const std::uint64_t value, read_limit(sysctl, limit.file));
    const std::uint64_t want = limit.get(wanted);
    // Sets of old versions lack the defaults of message queues: zero is no value there.
    const bool lacking = want == 0 && std::string_view(limit.file).ends_with("_default");
    if (value != want && !lacking) {
      FERRY_CHECK(write_limit(sysctl, limit.file, std::to_string(want)));
    }
  }
  return {};
}

}  // namespace ferry::state::ipc

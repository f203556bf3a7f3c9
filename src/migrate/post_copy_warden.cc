#include "migrate/post_copy_warden.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>
#include <cstring>
#include <map>
#include <optional>
#include <utility>

#include "base/log.h"
#include "migrate/freezer.h"

namespace ferry::migrate {
namespace {

constexpr int kDismissed = -1;
constexpr int kNothing = -2;  // is to be held any more

// A word, which is a number that is not negative or one of the above, and with it a descriptor that is to be held under this
// number; a number without one is dropped.
struct Word {
  int number = kDismissed;
  UniqueFd fd;
};

// nullopt: nobody is left to say anything.
Result<std::optional<Word>> receive(int socket) {
  Word out;
  iovec part{&out.number, sizeof out.number};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  ssize_t got = -1;
  do {
    got = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
  } while (got < 0 && errno == EINTR);
  if (got == 0) {
    return std::optional<Word>();
  }
  if (got != sizeof out.number) {
    return sys_fail("recvmsg(warden)");
  }
  if (const cmsghdr* const header = CMSG_FIRSTHDR(&message); header != nullptr && header->cmsg_type == SCM_RIGHTS) {
    int fd = -1;
    std::memcpy(&fd, CMSG_DATA(header), sizeof fd);
    out.fd = UniqueFd(fd);
  }
  return std::optional(std::move(out));
}

[[noreturn]] void watch(int socket, const std::string& freeze_cgroup) {
  sigset_t all;
  sigfillset(&all);
  ::sigprocmask(SIG_SETMASK, &all, nullptr);
  ::setsid();
  ::prctl(PR_SET_NAME, "ferry-warden");
  constexpr int kSocket = 3;
  if (socket != kSocket) {
    ::dup2(socket, kSocket);
  }
  ::close_range(kSocket + 1, UINT_MAX, 0);
  ::close_range(0, kSocket - 1, 0);
  std::map<int, UniqueFd> held;
  for (;;) {
    auto word = receive(kSocket);
    if (!word.has_value() || !word->has_value()) {
      break;
    }
    if ((*word)->number == kDismissed) {
      ::_exit(0);
    }
    if ((*word)->number == kNothing) {
      held.clear();
      continue;
    }
    if ((*word)->fd) {
      held.insert_or_assign((*word)->number, std::move((*word)->fd));
    } else {
      held.erase((*word)->number);
    }
  }
  if (!held.empty()) {
    static_cast<void>(freeze(freeze_cgroup));
    static_cast<void>(kill_frozen(freeze_cgroup));
  }
  ::_exit(1);
}

}  // namespace

Result<PostCopyWarden> PostCopyWarden::post(const std::string& freeze_cgroup) {
  std::array<int, 2> ends{};
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()) != 0) {
    return sys_fail("socketpair(warden)");
  }
  UniqueFd ours(ends[0]);
  const UniqueFd theirs(ends[1]);
  const pid_t child = ::fork();
  if (child < 0) {
    return sys_fail("fork(warden)");
  }
  if (child == 0) {
    watch(theirs.get(), freeze_cgroup);
  }
  return PostCopyWarden(child, std::move(ours));
}

PostCopyWarden::PostCopyWarden(PostCopyWarden&& other) noexcept
    : child_(std::exchange(other.child_, -1)), socket_(std::move(other.socket_)) {}

PostCopyWarden::~PostCopyWarden() {
  if (child_ > 0) {
    static_cast<void>(send(kDismissed, -1));
    while (::waitpid(child_, nullptr, 0) < 0 && errno == EINTR) {
    }
  }
}

Result<void> PostCopyWarden::send(int word, int uffd) {
  iovec part{&word, sizeof word};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (uffd >= 0) {
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &uffd, sizeof uffd);
  }
  ssize_t sent = -1;
  do {
    sent = ::sendmsg(socket_.get(), &message, MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  return sent == sizeof word ? Result<void>() : Result<void>(sys_fail("sendmsg(warden)"));
}

Result<void> PostCopyWarden::hold(int uffd) { return send(uffd, uffd); }
Result<void> PostCopyWarden::drop(int number) { return send(number, -1); }
Result<void> PostCopyWarden::drop_all() { return send(kNothing, -1); }

}  // namespace ferry::migrate

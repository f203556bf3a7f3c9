#include "migrate/post_copy_warden.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>
#include <map>
#include <optional>
#include <span>
#include <utility>

#include "base/log.h"
#include "migrate/freezer.h"
#include "sys/passed_fds.h"

namespace ferry::migrate {
namespace {

constexpr int kDismissed = -1;
constexpr int kNothing = -2;  // is to be held any more

// A word, which is a number that is not negative or one of the above, and with it a descriptor that is to be held under
// this number; a number without one is dropped.
struct Word {
  int number = kDismissed;
  UniqueFd fd;
};

// nullopt: nobody is left to say anything.
Result<std::optional<Word>> receive(int socket) {
  Word out;
  FERRY_TRY(auto got, sys::receive_with_fds(socket, std::as_writable_bytes(std::span(&out.number, 1)), "warden"));
  if (got.bytes == 0) {
    return std::optional<Word>();
  }
  if (got.bytes != sizeof out.number) {
    return fail(Kind::corrupt, "the warden was sent {} bytes", got.bytes);
  }
  if (!got.fds.empty()) {
    out.fd = std::move(got.fds.front());
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
  const std::span<const int> fds(&uffd, uffd >= 0 ? 1 : 0);
  FERRY_CHECK(sys::send_with_fds(socket_.get(), std::as_bytes(std::span(&word, 1)), fds, "warden"));
  return {};
}

Result<void> PostCopyWarden::hold(int uffd) { return send(uffd, uffd); }
Result<void> PostCopyWarden::drop(int number) { return send(number, -1); }
Result<void> PostCopyWarden::drop_all() { return send(kNothing, -1); }

}  // namespace ferry::migrate

#include "engine/reference.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <span>

#include "base/log.h"
#include "sys/passed_fds.h"

namespace ferry::engine {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::uint64_t kSetLimit = 1ULL << 30;  // descriptions without pages; far above what a tree needs
constexpr std::uint64_t kAnswerLimit = 1ULL << 20;
constexpr std::chrono::seconds kTransferLimit{20};  // of a local socket whose peer is alive
constexpr char kSkeleton = 's';
constexpr char kSentence = 'e';

Result<sockaddr_un> address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) {
    return fail(Kind::invalid, "{} is too long for the path of a socket", path);
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

Result<void> limit_time(int socket) {
  const timeval limit{.tv_sec = kTransferLimit.count(), .tv_usec = 0};
  if (::setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) != 0 ||
      ::setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) != 0) {
    return sys_fail("setsockopt(SO_RCVTIMEO)");
  }
  return {};
}

Result<void> send_all(int socket, const char* bytes, std::size_t size) {
  while (size > 0) {
    const ssize_t sent = ::send(socket, bytes, size, MSG_NOSIGNAL);
    if (sent < 0 && errno != EINTR) {
      return sys_fail("send(reference)");
    }
    const auto done = static_cast<std::size_t>(std::max<ssize_t>(sent, 0));
    bytes += done;
    size -= done;
  }
  return {};
}

Result<void> receive_all(int socket, char* bytes, std::size_t size) {
  while (size > 0) {
    const ssize_t got = ::recv(socket, bytes, size, 0);
    if (got == 0) {
      return fail(Kind::gone, "the other side of the reference's socket went away");
    }
    if (got < 0 && errno != EINTR) {
      return sys_fail("recv(reference)");
    }
    const auto done = static_cast<std::size_t>(std::max<ssize_t>(got, 0));
    bytes += done;
    size -= done;
  }
  return {};
}

Result<std::string> receive_text(int socket, std::uint64_t size, std::uint64_t limit) {
  if (size > limit) {
    return fail(Kind::corrupt, "the other side of the reference's socket announces {} bytes", size);
  }
  std::string text(size, '\0');
  FERRY_CHECK(receive_all(socket, text.data(), text.size()));
  return text;
}

// The length, and with it the descriptor.
Result<void> send_head(int socket, std::uint64_t length, int fd) {
  const auto bytes = std::as_bytes(std::span(&length, 1));
  FERRY_TRY(const std::size_t sent, sys::send_with_fds(socket, bytes, std::span(&fd, 1), "reference"));
  return send_all(socket, reinterpret_cast<const char*>(&length) + sent, sizeof length - sent);
}

Result<std::uint64_t> receive_head(int socket, UniqueFd& fd) {
  std::uint64_t length = 0;
  FERRY_TRY(auto got, sys::receive_with_fds(socket, std::as_writable_bytes(std::span(&length, 1)), "reference"));
  if (got.bytes == 0 || got.fds.empty()) {
    return fail(Kind::gone, "the receiver of the move closed the reference's socket");
  }
  fd = std::move(got.fds.front());
  FERRY_CHECK(receive_all(socket, reinterpret_cast<char*>(&length) + got.bytes, sizeof length - got.bytes));
  return length;
}

Result<void> send_text(int socket, const std::string& text) {
  const std::uint64_t length = text.size();
  FERRY_CHECK(send_all(socket, reinterpret_cast<const char*>(&length), sizeof length));
  return send_all(socket, text.data(), text.size());
}

bool is_root(int socket) {
  ucred peer{};
  socklen_t size = sizeof peer;
  return ::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.uid == 0;
}

Result<void> wait_readable(int socket, int give_up, Clock::time_point deadline, std::string_view what) {
  for (;;) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
    if (left <= 0) {
      return fail(Kind::gone, "{} did not come in time", what);
    }
    std::array<pollfd, 2> wanted{pollfd{.fd = socket, .events = POLLIN, .revents = 0},
                                 pollfd{.fd = give_up, .events = POLLIN, .revents = 0}};
    const int ready = ::poll(wanted.data(), wanted.size(), static_cast<int>(left));
    if (ready < 0 && errno != EINTR) {
      return sys_fail("poll(reference)");
    }
    if (ready > 0 && wanted[0].revents != 0) {
      return {};
    }
    if (ready > 0) {
      return fail(Kind::gone, "{} did not come, because the container runtime gave up", what);
    }
  }
}

}  // namespace

Result<ReferenceServer> ReferenceServer::listen(const std::string& path) {
  FERRY_TRY(const sockaddr_un address, address_of(path));
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket) {
    return sys_fail("socket(AF_UNIX)");
  }
  if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return sys_fail(fmt::format("bind({})", path));
  }
  ReferenceServer server(std::move(socket), path);
  if (::chmod(path.c_str(), 0600) != 0) {
    return sys_fail(fmt::format("chmod({})", path));
  }
  if (::listen(server.socket_.get(), 4) != 0) {
    return sys_fail(fmt::format("listen({})", path));
  }
  return server;
}

ReferenceServer::ReferenceServer(ReferenceServer&& other) noexcept
    : socket_(std::move(other.socket_)), path_(std::move(other.path_)) {
  other.path_.clear();
}

ReferenceServer::~ReferenceServer() {
  if (!path_.empty() && ::unlink(path_.c_str()) != 0 && errno != ENOENT) {
    log::warning("{} could not be removed: {}", path_, std::strerror(errno));
  }
}

Result<Skeleton> ReferenceServer::serve(const std::string& encoded_set, int give_up, std::chrono::seconds limit) {
  const auto deadline = Clock::now() + limit;
  UniqueFd peer;
  while (!peer) {
    FERRY_CHECK(wait_readable(socket_.get(), give_up, deadline, "the criu that the container runtime starts"));
    peer.reset(::accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (peer && !is_root(peer.get())) {
      log::warning("a process that is not root connected to {} and was turned away", path_);
      peer.reset();
    }
  }
  FERRY_CHECK(limit_time(peer.get()));
  const UniqueFd self(static_cast<int>(::syscall(SYS_pidfd_open, ::getpid(), 0)));
  if (!self) {
    return sys_fail("pidfd_open(self)");
  }
  FERRY_CHECK(send_head(peer.get(), encoded_set.size(), self.get()));
  FERRY_CHECK(send_all(peer.get(), encoded_set.data(), encoded_set.size()));
  FERRY_CHECK(wait_readable(peer.get(), give_up, deadline, "criu's answer"));
  std::uint64_t length = 0;
  FERRY_CHECK(receive_all(peer.get(), reinterpret_cast<char*>(&length), sizeof length)
                  .during("waiting for the skeleton that criu makes"));
  FERRY_TRY(const std::string text, receive_text(peer.get(), length, kAnswerLimit));
  if (text.starts_with(kSentence)) {
    return fail(Kind::os, "{}", text.substr(1));
  }
  if (!text.starts_with(kSkeleton)) {
    return fail(Kind::corrupt, "criu's answer is neither a skeleton nor an error");
  }
  FERRY_TRY(Skeleton skeleton, decode_skeleton(std::string_view(text).substr(1)));
  for (state::HeldNamespace& held : skeleton.namespaces) {
    std::byte mark{};
    FERRY_TRY(auto got, sys::receive_with_fds(peer.get(), std::span(&mark, 1), "reference"));
    if (got.fds.empty()) {
      return fail(Kind::gone, "criu went away before it had handed over the namespaces of the skeleton");
    }
    held.fd = std::move(got.fds.front());
  }
  return skeleton;
}

Result<FetchedReference> fetch_reference(const std::string& path) {
  FERRY_TRY(const sockaddr_un address, address_of(path));
  FetchedReference out;
  out.socket_.reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!out.socket_) {
    return sys_fail("socket(AF_UNIX)");
  }
  if (::connect(out.socket_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return Result<FetchedReference>(sys_fail(fmt::format("connect({})", path)))
        .during("asking the receiver of a move for the images");
  }
  FERRY_CHECK(limit_time(out.socket_.get()));
  FERRY_TRY(const std::uint64_t length, receive_head(out.socket_.get(), out.receiver_));
  FERRY_TRY(const std::string bytes, receive_text(out.socket_.get(), length, kSetLimit));
  FERRY_TRY(out.set_, image::decode(bytes).during("reading the images that the receiver gave"));
  return out;
}

Result<void> FetchedReference::answer(const Result<Skeleton>& skeleton) {
  if (skeleton.has_value()) {
    FERRY_CHECK(send_text(socket_.get(), kSkeleton + encode_skeleton(*skeleton)));
    for (const state::HeldNamespace& held : skeleton->namespaces) {
      constexpr std::byte kMark{'n'};
      const int fd = held.fd.get();
      FERRY_CHECK(sys::send_with_fds(socket_.get(), std::span(&kMark, 1), std::span(&fd, 1), "reference"));
    }
    return {};
  }
  return send_text(socket_.get(), kSentence + skeleton.error().message());
}

}  // namespace ferry::engine

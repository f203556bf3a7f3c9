#include "state/unix_socket/on_behalf.h"

#include <sched.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <functional>
#include <span>

#include "state/nested/nested.h"
#include "state/nsids/nsids.h"
#include "state/userns/userns.h"
#include "sys/file.h"

namespace ferry::state::unix_socket {
namespace {

constexpr std::uint32_t kKeep = ~0U;  // setresuid(2): leave it
constexpr std::size_t kPairsPerBatch = 4000;

// The skeleton that can make the call, if there is one: its credentials are still root's.
RestoreTask* task_of(const Caller& caller, RestoreContext& context) {
  RestoreTask* task = caller.pid == 0 ? nullptr : context.find(NsPid(caller.pid));
  return task != nullptr && task->mm != nullptr ? task : nullptr;
}

// The effective ids are what the other end is told (cred_to_ucred in net/core/sock.c); the saved ones stay
// root's, so that the way back is open.
void become(const Caller& caller, tracee::Batch& batch) {
  if (caller.gid != 0) {
    batch.may(SYS_setresgid, {kKeep, caller.gid, kKeep});
  }
  if (caller.uid != 0) {
    batch.may(SYS_setresuid, {kKeep, caller.uid, kKeep});
  }
}

void become_root(const Caller& caller, tracee::Batch& batch) {
  if (caller.uid != 0) {
    batch.must("setresuid", SYS_setresuid, {kKeep, 0, kKeep});
  }
  if (caller.gid != 0) {
    batch.must("setresgid", SYS_setresgid, {kKeep, 0, kKeep});
  }
}

// The same with the thread that stands in the tree's namespaces: system calls of one thread, where the C
// library's functions would change all of them (nptl(7)).
Result<void> in_our_place(const Caller& caller, std::uint32_t network, RestoreContext& context,
                          const std::function<Result<void>()>& work) {
  const userns::Owner owner = userns::outside(context, {caller.uid, caller.gid});
  FERRY_TRY(Inside* const inside, context.nested.inside_network(context, network));
  return inside->run([&]() -> Result<void> {
    const int dumpable = ::prctl(PR_GET_DUMPABLE);
    ::syscall(SYS_setresgid, kKeep, owner.gid, kKeep);
    ::syscall(SYS_setresuid, kKeep, owner.uid, kKeep);
    Result<void> done = work();
    const bool back = ::syscall(SYS_setresuid, kKeep, 0, kKeep) == 0 && ::syscall(SYS_setresgid, kKeep, 0, kKeep) == 0;
    ::prctl(PR_SET_DUMPABLE, dumpable);
    if (done.has_value() && !back) {
      return sys_fail("setresuid(0)");
    }
    return done;
  });
}

// To the network namespace of a socket, if a skeleton is not there already, and back.
struct Visit {
  UniqueFd there, home;
  bool forbidden = false;

  static Result<Visit> of(const RestoreTask* task, std::uint32_t network, RestoreContext& context) {
    Visit out;
    if (task == nullptr || network == 0 || namespace_of(*task->ids, NsKind::net) == network) {
      return out;
    }
    FERRY_TRY(const NamespaceIds ids, NamespaceIds::of(context.set));
    // setns(2) takes privileges over the namespace, which root of a user namespace has not over the dumper's.
    out.forbidden = ids.is_new(NsKind::user) && ids.dumper[static_cast<std::size_t>(NsKind::net)] == network;
    FERRY_TRY(out.there, context.nested.network(context, network));
    FERRY_TRY(out.home, context.nested.network(context, namespace_of(*task->ids, NsKind::net)));
    return out;
  }
  static void go(const RestoreTask* task, const UniqueFd& ns, tracee::Batch& batch) {
    if (ns) {
      const auto fd =
          batch.must("fetching a network namespace", SYS_pidfd_getfd, {task->controller_pidfd, ns.get(), 0});
      batch.must("setns", SYS_setns, {fd, CLONE_NEWNET});
      batch.must("closing a namespace", SYS_close, {fd});
    }
  }
};

}  // namespace

std::optional<Caller> caller_of_peer(const pb::UnixSkEntry& entry) {
  if (!entry.has_ferry_peer_pid()) {
    return std::nullopt;
  }
  return Caller{entry.ferry_peer_pid(), entry.ferry_peer_uid(), entry.ferry_peer_gid()};
}

Result<std::vector<OnBehalf::Pair>> OnBehalf::pairs(const Caller& caller, int type, std::uint32_t network,
                                                    std::size_t count, RestoreContext& context) {
  std::vector<Pair> out;
  RestoreTask* task = task_of(caller, context);
  FERRY_TRY(Visit visit, Visit::of(task, network, context));
  if (visit.forbidden) {
    task = nullptr;
  }
  if (task == nullptr) {
    FERRY_CHECK(in_our_place(caller, network, context, [&]() -> Result<void> {
      for (std::size_t i = 0; i < count; ++i) {
        int fds[2];
        if (::socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, fds) != 0) {
          return sys_fail("socketpair");
        }
        out.emplace_back(UniqueFd(fds[0]), UniqueFd(fds[1]));
      }
      return {};
    }));
    return out;
  }
  const UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, task->pid.value, 0)));
  if (!pidfd) {
    return sys_fail(fmt::format("pidfd_open({})", task->pid));
  }
  while (out.size() < count) {
    const std::size_t now = std::min(count - out.size(), kPairsPerBatch);
    tracee::Batch make;
    std::vector<tracee::Data> rooms;
    visit.go(task, visit.there, make);
    become(caller, make);
    for (std::size_t i = 0; i < now; ++i) {
      rooms.push_back(make.room(2 * sizeof(int)));
      make.must("socketpair", SYS_socketpair, {AF_UNIX, type | SOCK_CLOEXEC, 0, rooms.back()});
    }
    become_root(caller, make);
    visit.go(task, visit.home, make);
    FERRY_TRY(const auto replies, task->process.run(task->leader(), make));
    tracee::Batch close;
    for (const tracee::Data room : rooms) {
      const auto fds = replies.object<std::array<int, 2>>(room);
      UniqueFd ends[2];
      for (int i = 0; i < 2; ++i) {
        ends[i].reset(static_cast<int>(::syscall(SYS_pidfd_getfd, pidfd.get(), fds[static_cast<std::size_t>(i)], 0)));
        if (!ends[i]) {
          return sys_fail(fmt::format("pidfd_getfd(pid {}, fd {})", task->pid, fds[static_cast<std::size_t>(i)]));
        }
        close.must("closing a socket", SYS_close, {fds[static_cast<std::size_t>(i)]});
      }
      out.emplace_back(std::move(ends[0]), std::move(ends[1]));
    }
    // Not left to the end: what happens to the other when one end is closed begins with the last close.
    FERRY_CHECK(task->process.run(task->leader(), close));
  }
  return out;
}

Result<void> OnBehalf::listen(const Caller& caller, int socket, int backlog, RestoreContext& context) {
  RestoreTask* task = task_of(caller, context);
  if (task == nullptr) {
    return in_our_place(caller, 0, context, [&]() -> Result<void> {
      if (::listen(socket, backlog) != 0) {
        return sys_fail("listen");
      }
      return {};
    });
  }
  tracee::Batch batch;
  const auto fd = batch.must("fetching a socket", SYS_pidfd_getfd, {task->controller_pidfd, socket, 0});
  become(caller, batch);
  batch.must("listen", SYS_listen, {fd, backlog});
  become_root(caller, batch);
  batch.must("closing a socket", SYS_close, {fd});
  FERRY_CHECK(task->process.run(task->leader(), batch));
  return {};
}

Result<void> OnBehalf::connect(const Caller& caller, int socket, const sockaddr* address, socklen_t size, int directory,
                               RestoreContext& context) {
  RestoreTask* task = task_of(caller, context);
  if (task == nullptr) {
    return in_our_place(caller, 0, context, [&]() -> Result<void> {
      if ((directory >= 0 && ::fchdir(directory) != 0) || ::connect(socket, address, size) != 0) {
        return sys_fail("connect");
      }
      return {};
    });
  }
  tracee::Batch batch;
  const auto at = batch.bytes(std::as_bytes(std::span(reinterpret_cast<const char*>(address), size)));
  const auto fd = batch.must("fetching a socket", SYS_pidfd_getfd, {task->controller_pidfd, socket, 0});
  // Its own directory comes later (state/files/fs.h); the right to search this one is root's.
  if (directory >= 0) {
    const auto start = batch.must("fetching a directory", SYS_pidfd_getfd, {task->controller_pidfd, directory, 0});
    batch.must("fchdir", SYS_fchdir, {start});
    batch.must("closing a directory", SYS_close, {start});
  }
  become(caller, batch);
  batch.may(SYS_setfsuid, {0});  // the file may be closed to that user by now; brings root's right to files back
  batch.must("connect", SYS_connect, {fd, at, size});
  become_root(caller, batch);
  batch.must("chdir", SYS_chdir, {batch.string("/")});
  batch.must("closing a socket", SYS_close, {fd});
  FERRY_CHECK(task->process.run(task->leader(), batch));
  return {};
}

}  // namespace ferry::state::unix_socket

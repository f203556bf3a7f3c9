#include "state/tty/controlling.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

#include "sys/file.h"

namespace ferry::state::tty {

pid_t parse_foreground_group(std::string_view stat) {
  // The command name is in parentheses and may hold anything (proc(5)).
  const auto end = stat.rfind(')');
  if (end == std::string_view::npos) {
    return 0;
  }
  std::string_view rest = stat.substr(end + 1);
  for (int field = 3; !rest.empty(); ++field) {
    const auto start = rest.find_first_not_of(' ');
    if (start == std::string_view::npos) {
      return 0;
    }
    rest.remove_prefix(start);
    const std::string_view word = rest.substr(0, rest.find(' '));
    if (field == 8) {
      const auto number = sys::parse_number(word);  // "-1": no terminal
      return number ? static_cast<pid_t>(*number) : 0;
    }
    rest.remove_prefix(word.size());
  }
  return 0;
}

Session session_of(const DumpContext& context, std::int32_t tty_nr) {
  Session out;
  if (tty_nr == 0) {
    return out;
  }
  pid_t foreground = 0;
  for (const auto& task : context.tasks) {
    if (task->zombie || task->stat.tty_nr != tty_nr) {
      continue;
    }
    out.leader = static_cast<std::uint32_t>(task->ns_sid.value);
    if (const auto text = sys::read_file_at(task->proc.get(), "stat"); text.has_value()) {
      foreground = parse_foreground_group(*text);
    }
    break;
  }
  for (const auto& task : context.tasks) {
    if (foreground != 0 && task->stat.pgrp == foreground) {
      out.foreground = static_cast<std::uint32_t>(task->ns_pgid.value);
    }
  }
  return out;
}

Result<UniqueFd> duplicate_of(const DumpContext& context, std::uint32_t file_id) {
  for (const auto& task : context.tasks) {
    if (task->zombie) {
      continue;
    }
    for (const auto* row : context.set.list<pb::FdinfoEntry>({image::Type::fdinfo, task->ids->files_id()})) {
      if (row->id() == file_id) {
        const long fd = ::syscall(SYS_pidfd_getfd, task->pidfd.get(), row->fd(), 0);
        if (fd < 0) {
          return sys_fail(fmt::format("pidfd_getfd(pid {}, fd {})", task->pid, row->fd()));
        }
        return UniqueFd(static_cast<int>(fd));
      }
    }
  }
  return fail(Kind::gone, "no descriptor of the tree refers to file {}", file_id);
}

namespace {

struct Answer {
  int fd;
  int os_errno;
};

// In a child that shares our descriptor table.  Only system calls: the parent has other threads.
[[noreturn]] void open_as_leader(int slave, int flags, int report) {
  Answer answer{-1, 0};
  if (::setsid() < 0 || ::ioctl(slave, TIOCSCTTY, 0) != 0) {
    answer.os_errno = errno;
  } else {
    answer.fd = ::open("/dev/tty", flags | O_CLOEXEC);
    answer.os_errno = errno;
    // A leader that exits with its terminal hangs it up for everybody; giving it up first does not
    // (tty_ioctl(4), TIOCNOTTY: the signals go to the foreground group, which is this child).
    ::ioctl(slave, TIOCNOTTY);
  }
  (void)!::write(report, &answer, sizeof answer);
  ::_exit(0);
}

}  // namespace

Result<UniqueFd> open_current(Inside& inside, int slave, int flags) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) {
    return sys_fail("pipe2");
  }
  const UniqueFd from(ends[0]), to(ends[1]);
  // From the thread that has the tree's root, so that it is the tree's /dev/tty.
  FERRY_TRY(const pid_t child, inside.get<pid_t>([&]() -> Result<pid_t> {
    sigset_t all, before;
    sigfillset(&all);
    ::pthread_sigmask(SIG_BLOCK, &all, &before);  // TIOCNOTTY sends the child SIGHUP and SIGCONT
    const long pid = ::syscall(SYS_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) {
      open_as_leader(slave, flags, to.get());
    }
    const int failed = errno;
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
    if (pid < 0) {
      return sys_fail(failed, "clone(CLONE_FILES)");
    }
    return static_cast<pid_t>(pid);
  }));
  while (::waitpid(child, nullptr, __WALL) < 0 && errno == EINTR) {
  }
  if (::fcntl(from.get(), F_SETFL, O_NONBLOCK) != 0) {
    return sys_fail("fcntl(pipe, O_NONBLOCK)");
  }
  Answer answer{-1, 0};
  FERRY_CHECK(sys::read_exactly(from.get(), &answer, sizeof answer, "answer of the child that opens /dev/tty"));
  if (answer.fd < 0) {
    return sys_fail(answer.os_errno, "open(/dev/tty) with its controlling terminal");
  }
  return UniqueFd(answer.fd);
}

}  // namespace ferry::state::tty

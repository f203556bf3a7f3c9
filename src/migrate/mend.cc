#include "migrate/mend.h"

#include <fcntl.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>
#include <set>

#include "migrate/freezer.h"
#include "sys/file.h"

namespace ferry::migrate {
namespace {

bool is_in_repair(int fd) {
  int repair = 0;
  socklen_t size = sizeof repair;
  return ::getsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &repair, &size) == 0 && repair == 1;
}

Result<void> mend(int fd, Mend how) {
  const int off = TCP_REPAIR_OFF_NO_WP;
  if (::setsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &off, sizeof off) != 0) {
    return sys_fail("setsockopt(TCP_REPAIR, off)");
  }
  sockaddr nowhere{};
  nowhere.sa_family = AF_UNSPEC;
  // connect(2): an address of AF_UNSPEC dissolves the association; the peer gets a reset (tcp_disconnect in
  // net/ipv4/tcp.c).
  if (how == Mend::reset && ::connect(fd, &nowhere, sizeof nowhere) != 0) {
    return sys_fail("connect(AF_UNSPEC)");
  }
  return {};
}

}  // namespace

Result<int> mend_connections(const std::string& cgroup, Mend how) {
  int mended = 0;
  FERRY_TRY(const auto pids, members(cgroup));
  std::set<std::string> seen;
  for (const HostPid pid : pids) {
    const UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid.value, 0)));
    const auto table = sys::open(fmt::format("/proc/{}/fd", pid), O_RDONLY | O_DIRECTORY);
    if (!pidfd || !table.has_value()) {
      continue;  // it has ended
    }
    const auto names = sys::list_directory(table->get(), ".");
    for (const std::string& name : names.has_value() ? *names : std::vector<std::string>()) {
      const auto target = sys::read_link_at(table->get(), name);
      if (!target.has_value() || !target->starts_with("socket:") || !seen.insert(*target).second) {
        continue;
      }
      const UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_getfd, pidfd.get(), std::atoi(name.c_str()), 0)));
      if (fd && is_in_repair(fd.get())) {
        FERRY_CHECK(mend(fd.get(), how).during("mending descriptor {} of pid {}", name, pid));
        ++mended;
      }
    }
  }
  return mended;
}

}  // namespace ferry::migrate

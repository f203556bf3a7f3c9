#include "state/socket/options.h"

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <tuple>
#include <vector>

#include "sys/file.h"

namespace ferry::state::socket {
namespace {

constexpr int kBufLock = 72;  // SO_BUF_LOCK, Linux 5.15; not in the C library's header
// Options that are plain integers, on or off.
struct Toggle {
  int option;
  const char* name;
  bool (pb::SkOptsEntry::*get)() const;
  void (pb::SkOptsEntry::*set)(bool);
};
constexpr Toggle kToggles[] = {
    {SO_REUSEADDR, "SO_REUSEADDR", &pb::SkOptsEntry::reuseaddr, &pb::SkOptsEntry::set_reuseaddr},
    {SO_REUSEPORT, "SO_REUSEPORT", &pb::SkOptsEntry::so_reuseport, &pb::SkOptsEntry::set_so_reuseport},
    {SO_PASSCRED, "SO_PASSCRED", &pb::SkOptsEntry::so_passcred, &pb::SkOptsEntry::set_so_passcred},
    {SO_PASSSEC, "SO_PASSSEC", &pb::SkOptsEntry::so_passsec, &pb::SkOptsEntry::set_so_passsec},
    {SO_DONTROUTE, "SO_DONTROUTE", &pb::SkOptsEntry::so_dontroute, &pb::SkOptsEntry::set_so_dontroute},
    {SO_NO_CHECK, "SO_NO_CHECK", &pb::SkOptsEntry::so_no_check, &pb::SkOptsEntry::set_so_no_check},
    {SO_BROADCAST, "SO_BROADCAST", &pb::SkOptsEntry::so_broadcast, &pb::SkOptsEntry::set_so_broadcast},
    {SO_KEEPALIVE, "SO_KEEPALIVE", &pb::SkOptsEntry::so_keepalive, &pb::SkOptsEntry::set_so_keepalive},
};

// Some options exist for some families only (SO_REUSEPORT, SO_PASSCRED since 6.16).
bool is_foreign(int error) { return error == ENOPROTOOPT || error == EOPNOTSUPP; }

Result<timeval> get_timeout(int fd, int option, const std::string& subject) {
  timeval out{};
  socklen_t size = sizeof out;
  if (::getsockopt(fd, SOL_SOCKET, option, &out, &size) != 0) {
    return sys_fail(fmt::format("getsockopt({}, SO_RCVTIMEO or SO_SNDTIMEO)", subject));
  }
  return out;
}

Result<void> collect_filter(int fd, const std::string& subject, pb::SkOptsEntry& out) {
  socklen_t count = 0;  // of instructions, for this option
  if (::getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, nullptr, &count) != 0) {
    if (errno == EACCES) {
      return fail(Kind::unsupported, "{}: a socket with an eBPF filter cannot be carried over", subject);
    }
    return sys_fail(fmt::format("getsockopt({}, SO_GET_FILTER)", subject));
  }
  if (count == 0) {
    return {};
  }
  std::vector<sock_filter> filter(count);
  if (::getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, filter.data(), &count) != 0) {
    return sys_fail(fmt::format("getsockopt({}, SO_GET_FILTER)", subject));
  }
  FERRY_TRY(const int locked, get_int(fd, SOL_SOCKET, SO_LOCK_FILTER, "SO_LOCK_FILTER"));
  if (locked != 0) {
    out.set_ferry_filter_locked(true);
  }
  for (const sock_filter& f : filter) {
    out.add_so_filter(std::uint64_t{f.code} << 48 | std::uint64_t{f.jt} << 40 | std::uint64_t{f.jf} << 32 | f.k);
  }
  return {};
}

Result<void> restore_buffers(int fd, const pb::SkOptsEntry& entry, const std::string& subject) {
  // The kernel doubles what it is given (socket(7), SO_SNDBUF).  The FORCE forms need CAP_NET_ADMIN.
  for (const auto& [read, force, value] : {std::tuple(SO_SNDBUF, SO_SNDBUFFORCE, entry.so_sndbuf()),
                                           std::tuple(SO_RCVBUF, SO_RCVBUFFORCE, entry.so_rcvbuf())}) {
    FERRY_TRY(const int now, get_int(fd, SOL_SOCKET, read, "buffer size"));
    if (static_cast<std::uint32_t>(now) != value) {
      FERRY_CHECK(set_int(fd, SOL_SOCKET, force, static_cast<int>(value / 2), "SO_SNDBUFFORCE or SO_RCVBUFFORCE")
                      .during("{}", subject));
    }
  }
  const auto lock = get_int(fd, SOL_SOCKET, kBufLock, "SO_BUF_LOCK");
  if (entry.has_so_buf_lock() && (!lock.has_value() || static_cast<std::uint32_t>(*lock) != entry.so_buf_lock())) {
    return set_int(fd, SOL_SOCKET, kBufLock, static_cast<int>(entry.so_buf_lock()), "SO_BUF_LOCK");
  }
  return {};
}

// As a member of the first group that may.  A thread's own call, where the C library's would change all of them.
Result<UniqueFd> make_ping(int family, int protocol) {
  constexpr std::uint32_t kKeep = ~0U;  // setresgid(2): leave it
  FERRY_TRY(const std::string range, sys::read_file("/proc/sys/net/ipv4/ping_group_range"));
  const auto group = static_cast<std::uint32_t>(std::strtoul(range.c_str(), nullptr, 10));
  const int dumpable = ::prctl(PR_GET_DUMPABLE);
  const auto own = static_cast<std::uint32_t>(::getegid());
  ::syscall(SYS_setresgid, kKeep, group, kKeep);
  UniqueFd made(::socket(family, SOCK_DGRAM | SOCK_CLOEXEC, protocol));
  const int error = errno;
  const bool back = ::syscall(SYS_setresgid, kKeep, own, kKeep) == 0;
  ::prctl(PR_SET_DUMPABLE, dumpable);  // a change of the group has taken it away (prctl(2))
  if (!made) {
    return sys_fail(error,
                    fmt::format("socket(family {}, SOCK_DGRAM, protocol {}) as group {}", family, protocol, group));
  }
  if (!back) {
    return sys_fail("setresgid(own group)");
  }
  return made;
}

}  // namespace

Result<int> get_int(int fd, int level, int option, std::string_view what) {
  int value = 0;
  socklen_t size = sizeof value;
  if (::getsockopt(fd, level, option, &value, &size) != 0) {
    return sys_fail(fmt::format("getsockopt({})", what));
  }
  return value;
}

Result<void> set_int(int fd, int level, int option, int value, std::string_view what) {
  if (::setsockopt(fd, level, option, &value, sizeof value) != 0) {
    return sys_fail(fmt::format("setsockopt({}, {})", what, value));
  }
  return {};
}

Result<void> collect_options(int fd, const std::string& subject, pb::SkOptsEntry& out) {
  for (const Toggle& t : kToggles) {
    auto value = get_int(fd, SOL_SOCKET, t.option, t.name);
    if (!value.has_value()) {
      if (is_foreign(value.error().os_errno)) {
        continue;
      }
      return std::move(value).during("{}", subject).map([](int) {});
    }
    (out.*t.set)(*value != 0);
  }
  FERRY_TRY(const int sndbuf, get_int(fd, SOL_SOCKET, SO_SNDBUF, "SO_SNDBUF"));
  FERRY_TRY(const int rcvbuf, get_int(fd, SOL_SOCKET, SO_RCVBUF, "SO_RCVBUF"));
  FERRY_TRY(const int priority, get_int(fd, SOL_SOCKET, SO_PRIORITY, "SO_PRIORITY"));
  FERRY_TRY(const int lowat, get_int(fd, SOL_SOCKET, SO_RCVLOWAT, "SO_RCVLOWAT"));
  FERRY_TRY(const int mark, get_int(fd, SOL_SOCKET, SO_MARK, "SO_MARK"));
  FERRY_TRY(const int oob, get_int(fd, SOL_SOCKET, SO_OOBINLINE, "SO_OOBINLINE"));
  FERRY_TRY(const timeval send, get_timeout(fd, SO_SNDTIMEO, subject));
  FERRY_TRY(const timeval receive, get_timeout(fd, SO_RCVTIMEO, subject));
  out.set_so_sndbuf(static_cast<std::uint32_t>(sndbuf));
  out.set_so_rcvbuf(static_cast<std::uint32_t>(rcvbuf));
  out.set_so_priority(static_cast<std::uint32_t>(priority));
  out.set_so_rcvlowat(static_cast<std::uint32_t>(lowat));
  out.set_so_oobinline(static_cast<std::uint32_t>(oob));
  if (mark != 0) {
    out.set_so_mark(static_cast<std::uint32_t>(mark));
  }
  out.set_so_snd_tmo_sec(static_cast<std::uint64_t>(send.tv_sec));
  out.set_so_snd_tmo_usec(static_cast<std::uint64_t>(send.tv_usec));
  out.set_so_rcv_tmo_sec(static_cast<std::uint64_t>(receive.tv_sec));
  out.set_so_rcv_tmo_usec(static_cast<std::uint64_t>(receive.tv_usec));
  if (const auto lock = get_int(fd, SOL_SOCKET, kBufLock, "SO_BUF_LOCK"); lock.has_value()) {
    out.set_so_buf_lock(static_cast<std::uint32_t>(*lock));
  }
  linger wait{};
  socklen_t size = sizeof wait;
  if (::getsockopt(fd, SOL_SOCKET, SO_LINGER, &wait, &size) == 0 && wait.l_onoff != 0) {
    out.set_so_linger(static_cast<std::uint32_t>(wait.l_linger));
  }
  char device[IFNAMSIZ] = {};
  size = sizeof device;
  if (::getsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, device, &size) == 0 && size > 1) {
    out.set_so_bound_dev(std::string(device));
  }
  return collect_filter(fd, subject, out);
}

Result<void> prepare_bind(int fd, const pb::SkOptsEntry& entry, const std::string& subject) {
  FERRY_CHECK(set_int(fd, SOL_SOCKET, SO_REUSEADDR, 1, "SO_REUSEADDR").during("{}", subject));
  if (entry.so_reuseport()) {
    FERRY_CHECK(set_int(fd, SOL_SOCKET, SO_REUSEPORT, 1, "SO_REUSEPORT").during("{}", subject));
  }
  const std::string& device = entry.so_bound_dev();
  if (!device.empty() &&
      ::setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, device.c_str(), static_cast<socklen_t>(device.size() + 1)) != 0) {
    return sys_fail(fmt::format("setsockopt({}, SO_BINDTODEVICE, {})", subject, device));
  }
  return {};
}

Result<void> restore_options(int fd, const pb::SkOptsEntry& entry, const std::string& subject) {
  FERRY_CHECK(restore_plain_options(fd, entry, subject));
  return restore_filter(fd, entry, subject);
}

Result<void> restore_plain_options(int fd, const pb::SkOptsEntry& entry, const std::string& subject) {
  FERRY_CHECK(restore_buffers(fd, entry, subject));
  for (const Toggle& t : kToggles) {
    const int wanted = (entry.*t.get)() ? 1 : 0;
    const auto now = get_int(fd, SOL_SOCKET, t.option, t.name);
    if (now.has_value() ? (*now != 0) != (wanted != 0) : wanted != 0) {
      FERRY_CHECK(set_int(fd, SOL_SOCKET, t.option, wanted, t.name).during("{}", subject));
    }
  }
  const struct {
    int option;
    const char* name;
    bool has;
    std::uint32_t value;
  } numbers[] = {
      {SO_PRIORITY, "SO_PRIORITY", entry.has_so_priority(), entry.so_priority()},
      {SO_RCVLOWAT, "SO_RCVLOWAT", entry.has_so_rcvlowat(), entry.so_rcvlowat()},
      {SO_MARK, "SO_MARK", entry.has_so_mark(), entry.so_mark()},
      {SO_OOBINLINE, "SO_OOBINLINE", entry.has_so_oobinline(), entry.so_oobinline()},
  };
  for (const auto& n : numbers) {
    if (!n.has) {
      continue;
    }
    const auto now = get_int(fd, SOL_SOCKET, n.option, n.name);
    if (!now.has_value() || static_cast<std::uint32_t>(*now) != n.value) {
      FERRY_CHECK(set_int(fd, SOL_SOCKET, n.option, static_cast<int>(n.value), n.name).during("{}", subject));
    }
  }
  for (const auto& [option, sec, usec] : {std::tuple(SO_SNDTIMEO, entry.so_snd_tmo_sec(), entry.so_snd_tmo_usec()),
                                          std::tuple(SO_RCVTIMEO, entry.so_rcv_tmo_sec(), entry.so_rcv_tmo_usec())}) {
    const timeval tv{static_cast<time_t>(sec), static_cast<suseconds_t>(usec)};
    if ((sec != 0 || usec != 0) && ::setsockopt(fd, SOL_SOCKET, option, &tv, sizeof tv) != 0) {
      return sys_fail(fmt::format("setsockopt({}, timeout)", subject));
    }
  }
  if (entry.has_so_linger()) {
    const linger wait{1, static_cast<int>(entry.so_linger())};
    if (::setsockopt(fd, SOL_SOCKET, SO_LINGER, &wait, sizeof wait) != 0) {
      return sys_fail(fmt::format("setsockopt({}, SO_LINGER)", subject));
    }
  }
  const std::string& device = entry.so_bound_dev();
  if (!device.empty() &&
      ::setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, device.c_str(), static_cast<socklen_t>(device.size() + 1)) != 0) {
    return sys_fail(fmt::format("setsockopt({}, SO_BINDTODEVICE, {})", subject, device));
  }
  return {};
}

Result<void> restore_filter(int fd, const pb::SkOptsEntry& entry, const std::string& subject) {
  if (entry.so_filter_size() == 0) {
    return {};
  }
  std::vector<sock_filter> filter;
  for (const std::uint64_t word : entry.so_filter()) {
    filter.push_back({static_cast<__u16>(word >> 48), static_cast<__u8>(word >> 40), static_cast<__u8>(word >> 32),
                      static_cast<__u32>(word)});
  }
  const sock_fprog program{static_cast<unsigned short>(filter.size()), filter.data()};
  if (filter.size() > BPF_MAXINSNS || ::setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) != 0) {
    return sys_fail(fmt::format("setsockopt({}, SO_ATTACH_FILTER)", subject));
  }
  if (entry.ferry_filter_locked()) {
    return set_int(fd, SOL_SOCKET, SO_LOCK_FILTER, 1, "SO_LOCK_FILTER");
  }
  return {};
}

Result<UniqueFd> make(int family, int type, int protocol) {
  UniqueFd made(::socket(family, type | SOCK_CLOEXEC, protocol));
  if (!made && errno == EACCES && type == SOCK_DGRAM && (protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6)) {
    return make_ping(family, protocol);
  }
  if (!made) {
    return sys_fail(fmt::format("socket(family {}, type {}, protocol {})", family, type, protocol));
  }
  return made;
}

Result<UniqueFd> inherited(std::uint32_t inode, const RestoreOptions& options) {
  const std::string key = fmt::format("socket:[{}]", inode);
  for (const InheritFd& given : options.inherit_fds) {
    if (given.key == key) {
      return sys::duplicate(given.fd);
    }
  }
  return UniqueFd();
}

}  // namespace ferry::state::socket

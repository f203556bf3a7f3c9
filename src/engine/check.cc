#include "engine/check.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/kcmp.h>
#include <linux/sched.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <string>

#include "base/unique_fd.h"
#include "sys/file.h"
#include "sys/missing_pages.h"
#include "sys/nftables.h"
#include "sys/userfaultfd.h"

// Kernel constants that Debian 12's headers do not have.
namespace {
constexpr int kKcmpEpollTfd = 7;              // linux/kcmp.h since 4.13, an enumerator
constexpr int kMoveMountSetGroup = 0x100;     // linux/mount.h since 5.15
constexpr int kSoBufLock = 72;                // asm-generic/socket.h since 5.14
constexpr int kIpv6Freebind = 78;             // linux/in6.h since 4.15
constexpr int kPrTimerCreateRestoreIds = 77;  // linux/prctl.h since 6.15
constexpr unsigned long kPrTimerCreateRestoreIdsGet = 2;
constexpr int kArchMapVdso64 = 0x2003;                // asm/prctl.h, under CONFIG_CHECKPOINT_RESTORE
constexpr int kPtraceGetRseqConfiguration = 0x420f;   // linux/ptrace.h since 5.13
constexpr int kPtraceSeccompGetFilter = 0x420c;       // linux/ptrace.h since 4.4
constexpr unsigned long kSuspendSeccomp = 1UL << 21;  // PTRACE_O_SUSPEND_SECCOMP, since 4.3
constexpr unsigned long kSiocGskNs = 0x894C;          // linux/sockios.h since 4.10
constexpr unsigned long kSiocUnixFile = 0x89E0;       // linux/un.h since 4.12

// struct pm_scan_arg, linux/fs.h since 6.7 (Documentation/admin-guide/mm/pagemap.rst).
struct PmScanArg {
  std::uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
  std::uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
static_assert(sizeof(PmScanArg) == 96);
constexpr unsigned long kPagemapScan = _IOWR('f', 16, PmScanArg);
constexpr std::uint64_t kPageIsPresent = 1U << 3;
constexpr std::uint64_t kPageIsGuard = 1U << 8;  // since 6.15
}  // namespace

namespace ferry::engine {
namespace {

Result<bool> exists(const char* path) { return ::access(path, F_OK) == 0; }

Result<std::string> fdinfo(int fd) {
  const std::string path = fmt::format("/proc/self/fdinfo/{}", fd);
  const UniqueFd file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (!file) {
    return sys_fail(fmt::format("open({})", path));
  }
  std::array<char, 1024> text{};
  const ssize_t n = ::read(file.get(), text.data(), text.size());
  if (n < 0) {
    return sys_fail(fmt::format("read({})", path));
  }
  return std::string(text.data(), static_cast<std::size_t>(n));
}

Result<bool> fdinfo_has(int fd, std::string_view field) {
  FERRY_TRY(const std::string text, fdinfo(fd));
  return text.find(field) != std::string::npos;
}

// ---- one probe a feature -------------------------------------------------------------------------

Result<bool> has_mnt_id() {
  const UniqueFd root{::open("/", O_PATH | O_CLOEXEC)};
  if (!root) {
    return sys_fail("open(/)");
  }
  return fdinfo_has(root.get(), "mnt_id:");
}

Result<bool> has_timerfd_info() {
  const UniqueFd timer{::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC)};
  if (!timer) {
    return sys_fail("timerfd_create()");
  }
  return fdinfo_has(timer.get(), "clockid:");
}

Result<bool> has_lock_info() {
  const UniqueFd file{::memfd_create("ferry-check", MFD_CLOEXEC)};
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  if (!file || ::fcntl(file.get(), F_OFD_SETLK, &lock) != 0) {
    return sys_fail("fcntl(memfd, F_OFD_SETLK)");
  }
  return fdinfo_has(file.get(), "lock:");
}

// A child that waits to be looked at; killed and reaped with the object.
class Specimen {
 public:
  static Result<Specimen> start() {
    const pid_t child = ::fork();
    if (child < 0) {
      return sys_fail("fork()");
    }
    if (child == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      for (;;) {
        ::pause();
      }
    }
    return Specimen(child);
  }
  Specimen(Specimen&& other) noexcept : pid_(std::exchange(other.pid_, -1)) {}
  Specimen& operator=(Specimen&&) = delete;
  ~Specimen() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, __WALL);
    }
  }
  [[nodiscard]] pid_t pid() const { return pid_; }
  // Attached and stopped from here on.
  Result<void> stop() const {
    if (::ptrace(PTRACE_SEIZE, pid_, nullptr, nullptr) != 0) {
      return sys_fail(fmt::format("ptrace(PTRACE_SEIZE, {})", pid_));
    }
    if (::ptrace(PTRACE_INTERRUPT, pid_, nullptr, nullptr) != 0 || ::waitpid(pid_, nullptr, __WALL) != pid_) {
      return sys_fail(fmt::format("ptrace(PTRACE_INTERRUPT, {})", pid_));
    }
    return {};
  }

 private:
  explicit Specimen(pid_t pid) : pid_(pid) {}
  pid_t pid_;
};

Result<bool> has_seccomp_suspend() {
  FERRY_TRY(const Specimen child, Specimen::start());
  // ptrace(2): EINVAL without CONFIG_CHECKPOINT_RESTORE or CONFIG_SECCOMP, EPERM without rights.
  if (::ptrace(PTRACE_SEIZE, child.pid(), nullptr, kSuspendSeccomp) == 0) {
    return true;
  }
  if (errno == EINVAL) {
    return false;
  }
  return sys_fail(fmt::format("ptrace(PTRACE_SEIZE, {}, PTRACE_O_SUSPEND_SECCOMP)", child.pid()));
}

Result<bool> has_seccomp_filters() {
  FERRY_TRY(const Specimen child, Specimen::start());
  FERRY_CHECK(child.stop());
  // The child inherits our filters: then the call succeeds; without any it answers ENOENT or EINVAL
  // (not in filter mode), and EIO or ENOSYS where the request itself is not known.
  const long count = ::ptrace(static_cast<__ptrace_request>(kPtraceSeccompGetFilter), child.pid(), 0UL, nullptr);
  return count >= 0 || errno == ENOENT || errno == EINVAL;
}

Result<bool> has_rseq_configuration() {
  FERRY_TRY(const Specimen child, Specimen::start());
  FERRY_CHECK(child.stop());
  struct {
    std::uint64_t pointer;
    std::uint32_t size, signature, flags, pad;
  } configuration{};
  static_assert(sizeof configuration == 24);
  return ::ptrace(static_cast<__ptrace_request>(kPtraceGetRseqConfiguration), child.pid(), sizeof configuration,
                  &configuration) > 0;
}

Result<bool> has_clone3_set_tid() {
  // Our own pid is taken, so that the kernel refuses with EEXIST what it understands; E2BIG is a
  // kernel that does not know the field (before 5.5), ENOSYS one without clone3.
  const pid_t taken = ::getpid();
  clone_args args{};
  args.exit_signal = SIGCHLD;
  args.set_tid = reinterpret_cast<std::uintptr_t>(&taken);
  args.set_tid_size = 1;
  const long child = ::syscall(SYS_clone3, &args, sizeof args);
  if (child == 0) {
    ::_exit(0);
  }
  if (child > 0) {
    ::waitpid(static_cast<pid_t>(child), nullptr, __WALL);
    return true;
  }
  if (errno == EPERM) {
    return sys_fail("clone3(set_tid)");
  }
  return errno == EEXIST;
}

Result<bool> has_kcmp_epoll() {
  const UniqueFd epoll{::epoll_create1(EPOLL_CLOEXEC)};
  const UniqueFd timer{::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC)};
  epoll_event event{.events = EPOLLIN, .data = {}};
  if (!epoll || !timer || ::epoll_ctl(epoll.get(), EPOLL_CTL_ADD, timer.get(), &event) != 0) {
    return sys_fail("epoll_ctl()");
  }
  const std::array<std::uint32_t, 3> slot{static_cast<std::uint32_t>(epoll.get()),
                                          static_cast<std::uint32_t>(timer.get()), 0};
  const pid_t self = ::getpid();
  return ::syscall(SYS_kcmp, self, self, kKcmpEpollTfd, timer.get(), slot.data()) == 0;
}

Result<bool> has_socket_namespace() {
  const UniqueFd socket{::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)};
  if (!socket) {
    return sys_fail("socket(AF_INET)");
  }
  const UniqueFd ns{::ioctl(socket.get(), kSiocGskNs)};
  return static_cast<bool>(ns);
}

Result<bool> has_unix_file() {
  const UniqueFd socket{::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0)};
  if (!socket) {
    return sys_fail("socket(AF_UNIX)");
  }
  // An unbound socket has no file: ENOENT from kernels that know the request.
  return ::ioctl(socket.get(), kSiocUnixFile) < 0 && errno == ENOENT;
}

Result<bool> has_socket_option(int family, int level, int option) {
  const UniqueFd socket{::socket(family, SOCK_DGRAM | SOCK_CLOEXEC, 0)};
  int value = 0;
  socklen_t size = sizeof value;
  return socket && ::getsockopt(socket.get(), level, option, &value, &size) == 0;
}
Result<bool> has_buffer_lock() { return has_socket_option(AF_UNIX, SOL_SOCKET, kSoBufLock); }
Result<bool> has_ipv6_freebind() { return has_socket_option(AF_INET6, IPPROTO_IPV6, kIpv6Freebind); }

// TCP_REPAIR, with the window (Linux 4.9): what half closed connections need, too.
Result<bool> has_tcp_repair() {
  constexpr int kRepair = 19, kRepairWindow = 29;  // linux/tcp.h
  const UniqueFd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int on = 1;
  std::uint32_t window[5] = {};
  socklen_t size = sizeof window;
  return socket && ::setsockopt(socket.get(), IPPROTO_TCP, kRepair, &on, sizeof on) == 0 &&
         ::getsockopt(socket.get(), IPPROTO_TCP, kRepairWindow, window, &size) == 0;
}

Result<bool> has_nftables() {
  auto nft = sys::Nftables::open();
  if (!nft.has_value()) {
    return false;
  }
  constexpr std::uint8_t kInet = 1;  // NFPROTO_INET
  const auto table = nft->find_table(kInet, "there is none");
  return !table.has_value() && table.error().kind == Kind::gone;
}

Result<bool> has_move_mount_set_group() {
  // Unknown flags are EINVAL before anything is looked at; known ones reach the empty path: not EINVAL.
  return ::syscall(SYS_move_mount, -1, "", -1, "", kMoveMountSetGroup) < 0 && errno != EINVAL && errno != ENOSYS;
}

Result<bool> has_openat2() { return ::syscall(SYS_openat2, -1, nullptr, nullptr, 0) < 0 && errno != ENOSYS; }

Result<bool> can_map_vdso() {
  // There is one already, hence EEXIST; EINVAL where the request is not compiled in.
  return ::syscall(SYS_arch_prctl, kArchMapVdso64, 0UL) < 0 && errno == EEXIST;
}

Result<bool> scan_takes(std::uint64_t category) {
  const UniqueFd pagemap{::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC)};
  if (!pagemap) {
    return sys_fail("open(/proc/self/pagemap)");
  }
  PmScanArg scan{};
  scan.size = sizeof scan;
  scan.category_anyof_mask = category;
  scan.return_mask = category;
  return ::ioctl(pagemap.get(), kPagemapScan, &scan) >= 0;
}
Result<bool> has_pagemap_scan() { return scan_takes(kPageIsPresent); }
Result<bool> has_guard_pages() { return scan_takes(kPageIsGuard); }

Result<bool> has_timer_ids() {
  return ::prctl(kPrTimerCreateRestoreIds, kPrTimerCreateRestoreIdsGet, 0UL, 0UL, 0UL) >= 0;
}

Result<bool> has_loginuid() { return exists("/proc/self/loginuid"); }
Result<bool> has_cgroup_namespace() { return exists("/proc/self/ns/cgroup"); }
Result<bool> has_time_namespace() { return exists("/proc/self/timens_offsets"); }

Result<bool> has_user_namespace() { return exists("/proc/self/ns/user"); }

// RTM_GETNSID, and IFLA_LINK_NETNSID with it, are there since Linux 4.0: before this socket request (4.9).
Result<bool> has_namespace_numbers() { return has_socket_namespace(); }

// Moving a ring with mremap(2) is possible since Linux 3.19: where there are rings at all.
Result<bool> has_rings() {
  aio_context_t ring = 0;
  if (::syscall(SYS_io_setup, 1U, &ring) != 0) {
    return false;
  }
  return ::syscall(SYS_io_destroy, ring) == 0;
}

// Without a huge page in the pool: the file is made, and has none yet.
Result<bool> has_huge_memfd() {
  const UniqueFd file{static_cast<int>(::syscall(SYS_memfd_create, "ferry", MFD_CLOEXEC | MFD_HUGETLB))};
  return static_cast<bool>(file);
}

Result<bool> has_numbers_in_namespaces() {
  FERRY_TRY(const std::string text, sys::read_file("/proc/self/status"));
  return text.find("\nNSpid:") != std::string::npos;
}

Result<bool> has_map_files() { return exists("/proc/self/map_files"); }
Result<bool> has_children() { return exists("/proc/thread-self/children"); }

Result<bool> has_kcmp() {
  const pid_t self = ::getpid();
  return ::syscall(SYS_kcmp, self, self, KCMP_VM, 0UL, 0UL) == 0;
}

Result<bool> has_pidfd_getfd() {
  const UniqueFd self{static_cast<int>(::syscall(SYS_pidfd_open, ::getpid(), 0U))};
  const UniqueFd copy{self ? static_cast<int>(::syscall(SYS_pidfd_getfd, self.get(), self.get(), 0U)) : -1};
  return static_cast<bool>(copy);
}

// ---- the table -----------------------------------------------------------------------------------

enum class Need { required, extra, none };
struct Probe {
  std::string_view name;
  Need need;
  Result<bool> (*run)();  // null: ferry does nothing with it
};

// criu(8)'s names, CRIU 4.2's order.
constexpr std::array kFeatures{
    Probe{"mnt_id", Need::required, has_mnt_id},
    Probe{"mem_dirty_track", Need::extra, sys::has_write_tracking},
    Probe{"aio_remap", Need::none, has_rings},
    Probe{"timerfd", Need::required, has_timerfd_info},
    Probe{"tun", Need::none, nullptr},
    Probe{"tun_ns", Need::none, nullptr},
    Probe{"userns", Need::none, has_user_namespace},
    Probe{"fdinfo_lock", Need::extra, has_lock_info},
    Probe{"seccomp_suspend", Need::required, has_seccomp_suspend},
    Probe{"seccomp_filters", Need::required, has_seccomp_filters},
    Probe{"loginuid", Need::none, has_loginuid},
    Probe{"cgroupns", Need::extra, has_cgroup_namespace},
    Probe{"autofs", Need::none, nullptr},
    Probe{"tcp_half_closed", Need::none, has_tcp_repair},
    Probe{"compat_cr", Need::none, nullptr},
    Probe{"uffd", Need::none, sys::has_missing_pages},
    Probe{"uffd-noncoop", Need::none, sys::has_missing_pages},
    Probe{"can_map_vdso", Need::none, can_map_vdso},
    Probe{"sk_ns", Need::extra, has_socket_namespace},
    Probe{"sk_unix_file", Need::extra, has_unix_file},
    Probe{"net_diag_raw", Need::none, nullptr},
    Probe{"nsid", Need::none, has_namespace_numbers},
    Probe{"link_nsid", Need::none, has_namespace_numbers},
    Probe{"kcmp_epoll", Need::extra, has_kcmp_epoll},
    Probe{"timens", Need::extra, has_time_namespace},
    Probe{"external_net_ns", Need::none, has_namespace_numbers},
    Probe{"clone3_set_tid", Need::required, has_clone3_set_tid},
    Probe{"newifindex", Need::none, nullptr},
    Probe{"nftables", Need::none, has_nftables},
    Probe{"has_ipt_legacy", Need::none, nullptr},
    Probe{"pidfd_store", Need::none, nullptr},
    Probe{"ns_pid", Need::none, has_numbers_in_namespaces},
    Probe{"apparmor_stacking", Need::none, nullptr},
    Probe{"network_lock_nftables", Need::none, has_nftables},
    Probe{"sockopt_buf_lock", Need::extra, has_buffer_lock},
    Probe{"memfd_hugetlb", Need::none, has_huge_memfd},
    Probe{"move_mount_set_group", Need::extra, has_move_mount_set_group},
    Probe{"openat2", Need::extra, has_openat2},
    Probe{"get_rseq_conf", Need::required, has_rseq_configuration},
    Probe{"ipv6_freebind", Need::none, has_ipv6_freebind},
    Probe{"pagemap_scan", Need::extra, has_pagemap_scan},
    Probe{"timer_cr_ids", Need::none, has_timer_ids},
    Probe{"overlayfs_maps", Need::none, nullptr},
    Probe{"breakpoints", Need::none, nullptr},
    Probe{"pagemap_scan_guard_pages", Need::none, has_guard_pages},
};

// Needs of ferry that have no name among CRIU's features.
constexpr std::array kOwnNeeds{
    Probe{"/proc/PID/map_files", Need::required, has_map_files},
    Probe{"/proc/PID/task/TID/children", Need::required, has_children},
    Probe{"kcmp(2)", Need::required, has_kcmp},
    Probe{"pidfd_getfd(2)", Need::required, has_pidfd_getfd},
};

Result<void> check_probe(const Probe& probe) {
  FERRY_TRY(const bool there, probe.run().during("probing for {}", probe.name));
  if (!there) {
    return fail(Kind::unsupported, "this kernel lacks {}, which ferry needs", probe.name);
  }
  return {};
}

Result<void> check_all(Need need) {
  for (const Probe& probe : kFeatures) {
    if (probe.need == need && probe.run != nullptr) {
      FERRY_CHECK(check_probe(probe));
    }
  }
  for (const Probe& probe : kOwnNeeds) {
    if (probe.need == need) {
      FERRY_CHECK(check_probe(probe));
    }
  }
  return {};
}

}  // namespace

Result<Feature> probe_feature(std::string_view name) {
  const auto* const probe =
      std::find_if(kFeatures.begin(), kFeatures.end(), [&](const Probe& p) { return p.name == name; });
  if (probe == kFeatures.end()) {
    return Feature::unknown;
  }
  if (probe->run == nullptr) {
    return Feature::unused;
  }
  FERRY_TRY(const bool there, probe->run().during("probing for {}", name));
  return there ? Feature::available : Feature::missing;
}

Result<void> check_required_features() {
  if (::geteuid() != 0) {
    return fail(Kind::denied, "ferry has to run as root, and this is user {}", ::geteuid());
  }
  return check_all(Need::required);
}

Result<void> check_extra_features() { return check_all(Need::extra); }

}  // namespace ferry::engine

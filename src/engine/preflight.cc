#include "engine/preflight.h"

#include <linux/kcmp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <charconv>
#include <string_view>
#include <vector>

#include "base/log.h"
#include "engine/list_tree.h"
#include "engine/rehearsal.h"
#include "state/creds/creds.h"
#include "state/io_uring/io_uring.h"
#include "state/io_uring/ring_users.h"
#include "sys/file.h"
#include "sys/landlock_look.h"
#include "sys/proc.h"

namespace ferry::engine {
namespace {

struct Impossible {
  std::string_view link;  // as /proc/PID/fd shows it
  std::string_view what;
};
constexpr Impossible kImpossible[] = {
    {"anon_inode:[userfaultfd]", "a userfaultfd"},
    {"anon_inode:[perf_event]", "a performance counter"},
    {"anon_inode:bpf-prog", "an eBPF program"},
    {"anon_inode:bpf_link", "an eBPF link"},
    {"anon_inode:kvm-vm", "a virtual machine"},
    {"anon_inode:seccomp notify", "a seccomp supervisor"},
    {"anon_inode:landlock-ruleset", "a Landlock ruleset"},
    {"anon_inode:[fscontext]", "a file system that is being mounted"},
};

bool leader_has_ended(int proc) {
  const auto text = sys::read_file_at(proc, "stat");
  const auto stat = text.has_value() ? sys::parse_stat(*text) : Result<sys::Stat>(tl::unexpect, text.error());
  return !stat.has_value() || stat->state == 'Z';
}

struct Rings {
  state::io_uring::RingLook look;
  bool seen = false;
};

Result<void> look_at_descriptors(HostPid pid, Rings& rings) {
  const auto proc = sys::open_proc(pid);
  if (!proc.has_value()) {
    return {};  // it has just ended
  }
  const auto numbers = sys::numeric_entries(proc->get(), "fd");
  if (!numbers.has_value()) {
    return {};
  }
  for (const int fd : *numbers) {
    const auto link = sys::read_link_at(proc->get(), fmt::format("fd/{}", fd));
    for (const Impossible& i : kImpossible) {
      if (link.has_value() && *link == i.link) {
        return fail(Kind::unsupported, "pid {} fd {} ({}): {} cannot be carried over; let the program close it first",
                    pid, fd, *link, i.what);
      }
    }
    if (link.has_value() && state::io_uring::is_ring(*link)) {
      rings.seen = true;
      FERRY_CHECK(state::io_uring::preflight(pid, fd, rings.look));
    }
  }
  return {};
}

// What only unshare(2) in a thread makes; nothing in the images could say so.
Result<void> look_at_threads(HostPid pid) {
  const auto proc = sys::open_proc(pid);
  if (!proc.has_value()) {
    return {};
  }
  const auto tids = sys::numeric_entries(proc->get(), "task");
  if (!tids.has_value()) {
    return {};
  }
  for (const int tid : *tids) {
    // 0: the same; an error: the thread has just ended.
    const auto differ = [&](int what) {
      return tid != pid.value && ::syscall(SYS_kcmp, pid.value, tid, what, 0, 0) > 0;
    };
    const char* own = differ(KCMP_FILES) ? "descriptor table" : differ(KCMP_FS) ? "working directory" : nullptr;
    const auto text = own == nullptr ? Result<std::string>(std::string())
                                     : sys::read_file_at(proc->get(), fmt::format("task/{}/stat", tid));
    if (own == nullptr || !text.has_value()) {
      continue;
    }
    const auto stat = sys::parse_stat(*text);
    constexpr std::uint32_t kExiting = 4;  // PF_EXITING: it has given up what it had
    if (stat.has_value() && (stat->flags & kExiting) == 0 && !leader_has_ended(proc->get())) {
      return fail(Kind::unsupported, "thread {} of pid {} has a {} of its own (unshare(2)), which cannot be carried",
                  tid, pid, own);
    }
  }
  return {};
}

Result<void> look_at(HostPid pid, const DumpOptions& options, bool with_look, Rings& rings) {
  warm_procfs(pid, with_look);
  FERRY_CHECK(state::creds::preflight(pid, options));
  FERRY_CHECK(look_at_threads(pid));
  return look_at_descriptors(pid, rings);
}

// Nobody can read the rules back, and without them the program would run with more rights than it wanted to have.
Result<void> look_at_restrictions(const std::vector<HostPid>& tree, const sys::Btf& btf) {
  if (!sys::kernel_has_landlock()) {
    return {};
  }
  const auto look = sys::LandlockLook::open(btf);
  const auto any = look.has_value() ? look->any() : Result<bool>(tl::unexpect, look.error());
  if (!any.has_value()) {
    log::info("this kernel does not show who has restricted itself with Landlock: {}", any.error().message());
    return {};
  }
  for (const HostPid pid : *any ? tree : std::vector<HostPid>()) {
    if (const auto restricted = look->is_restricted(pid); restricted.has_value() && *restricted) {
      return fail(Kind::unsupported,
                  "pid {} has restricted itself with landlock(7), whose rules the kernel does not tell, so they cannot "
                  "be carried over",
                  pid);
    }
  }
  return {};
}

// 0 where the line is missing: a zombie has no memory.
std::uint64_t kibibytes(std::string_view status, std::string_view name) {
  const std::size_t at = status.find(name);
  const std::size_t digits = at == std::string_view::npos ? at : status.find_first_of("0123456789", at);
  std::uint64_t out = 0;
  if (digits != std::string_view::npos) {
    (void)std::from_chars(status.data() + digits, status.data() + status.size(), out);
  }
  return out;
}

}  // namespace

Result<void> preflight(const DumpOptions& options, sys::TaskLook& look, sys::MappingLook& mappings,
                       tracee::WaysBack& ways) {
  const std::vector<HostPid> tree = list_tree(options.pid, &look);
  Rings rings;
  for (const HostPid pid : tree) {
    if (pid.value == ::getpid()) {
      return fail(Kind::unsupported,
                  "this process, {}, belongs to the tree of pid {} that it is to save: start it from elsewhere, or let "
                  "the tree ask criu service",
                  pid, options.pid);
    }
    auto looked = look_at(pid, options, look.is_open(), rings);
    if (!looked.has_value() && (pid == options.pid || looked.error().kind != Kind::gone)) {
      return looked;
    }
    mappings.expect(pid);
    ways.learn(pid);
  }
  const auto btf = sys::Btf::of_kernel();
  if (!btf.has_value()) {
    log::info("this kernel does not show who has restricted itself with Landlock, or hides an io_uring: {}",
              btf.error().message());
    return {};
  }
  if (!rings.seen) {
    FERRY_CHECK(state::io_uring::check_hidden(tree, *btf));
  }
  return look_at_restrictions(tree, *btf);
}

std::vector<std::uint64_t> private_memory(HostPid root, sys::TaskLook& look) {
  std::vector<std::uint64_t> out;
  for (const HostPid pid : list_tree(root, &look)) {
    if (const auto status = sys::read_file(fmt::format("/proc/{}/status", pid)); status.has_value()) {
      out.push_back(kibibytes(*status, "RssAnon:") + kibibytes(*status, "VmSwap:"));
      out.back() <<= 10;
    }
  }
  return out;
}

}  // namespace ferry::engine

#include "state/network_lock/iptables.h"

#include <arpa/inet.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

#include "sys/file.h"

namespace ferry::state::network_lock {
namespace {

std::string address(const Connection& c, const std::array<std::uint8_t, 16>& bytes) {
  char text[INET6_ADDRSTRLEN] = {};
  ::inet_ntop(c.ipv6 ? AF_INET6 : AF_INET, bytes.data(), text, sizeof text);
  return text;
}

// The program's messages go where ours go.
Result<void> run(const char* program, const std::string& text) {
  UniqueFd input(::memfd_create("iptables rules", MFD_CLOEXEC));
  if (!input) {
    return sys_fail("memfd_create(iptables rules)");
  }
  FERRY_CHECK(sys::write_all(input.get(), text.data(), text.size(), "iptables rules"));
  if (::lseek(input.get(), 0, SEEK_SET) != 0) {
    return sys_fail("lseek(iptables rules)");
  }
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, input.get(), STDIN_FILENO);
  std::string name = program, keep = "--noflush", wait = "--wait=5";
  char* argv[] = {name.data(), keep.data(), wait.data(), nullptr};
  pid_t child = 0;
  int failed = ::posix_spawnp(&child, program, &actions, nullptr, argv, environ);
  if (failed == ENOENT) {
    // Container runtimes are often started without the directories of the administrator on their PATH.
    failed = ::posix_spawn(&child, fmt::format("/usr/sbin/{}", program).c_str(), &actions, nullptr, argv, environ);
  }
  posix_spawn_file_actions_destroy(&actions);
  if (failed != 0) {
    return sys_fail(failed, fmt::format("running {}", program));
  }
  int status = 0;
  while (::waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) {
      return sys_fail(fmt::format("waitpid({})", program));
    }
  }
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    return fail(Kind::os, "{} ended with status {:#x}", program, status);
  }
  return {};
}

}  // namespace

std::string iptables_text(const Request& request, bool ipv6, bool add) {
  std::string out = "*filter\n";
  if (request.whole) {
    if (add) {
      out += ":CRIU - [0:0]\n-I INPUT -j CRIU\n-I OUTPUT -j CRIU\n";
      out += fmt::format("-A CRIU -m mark --mark {:#x} -j ACCEPT\n-A CRIU -j DROP\n", kOwnMark);
    } else {
      out += ":CRIU - [0:0]\n-D INPUT -j CRIU\n-D OUTPUT -j CRIU\n-X CRIU\n";
    }
    return out + "COMMIT\n";
  }
  bool any = false;
  const auto rule = [&](const char* chain, const std::string& from, std::uint16_t from_port, const std::string& to,
                        std::uint16_t to_port) {
    out += fmt::format("{} {} -s {} -d {} -p tcp -m mark ! --mark {:#x} -m tcp --sport {} --dport {} -j DROP\n",
                       add ? "-I" : "-D", chain, from, to, kOwnMark, from_port, to_port);
  };
  for (const Connection& c : request.connections) {
    if (c.ipv6 == ipv6) {
      any = true;
      rule("INPUT", address(c, c.remote), c.remote_port, address(c, c.local), c.local_port);
      rule("OUTPUT", address(c, c.local), c.local_port, address(c, c.remote), c.remote_port);
    }
  }
  return any ? out + "COMMIT\n" : std::string();
}

Result<void> switch_iptables(const Request& request, bool add) {
  for (const bool ipv6 : {false, true}) {
    if (const std::string text = iptables_text(request, ipv6, add); !text.empty()) {
      FERRY_CHECK(run(ipv6 ? "ip6tables-restore" : "iptables-restore", text));
    }
  }
  return {};
}

}  // namespace ferry::state::network_lock

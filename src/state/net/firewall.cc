#include "state/net/firewall.h"

#include <fcntl.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <string>
#include <vector>

#include "state/net/message.h"
#include "sys/file.h"
#include "sys/netlink.h"

namespace ferry::state::net {
namespace {

struct Pipe {
  UniqueFd read, write;
};
Result<Pipe> make_pipe() {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) {
    return sys_fail("pipe2");
  }
  return Pipe{UniqueFd(ends[0]), UniqueFd(ends[1])};
}

// Feeds one end and drains the others until both of these are at their end.
Result<void> exchange(UniqueFd in, const std::string& input, int out, int err, std::string& output,
                      std::string& errors) {
  (void)::fcntl(in.get(), F_SETFL, O_NONBLOCK);
  std::size_t written = 0;
  bool out_open = true, err_open = true;
  while (out_open || err_open) {
    if (in && written == input.size()) {
      in.reset();
    }
    pollfd fds[3] = {
        {out_open ? out : -1, POLLIN, 0}, {err_open ? err : -1, POLLIN, 0}, {in ? in.get() : -1, POLLOUT, 0}};
    if (::poll(fds, 3, -1) < 0 && errno != EINTR) {
      return sys_fail("poll");
    }
    std::array<char, 65536> block;
    const auto drain = [&](const pollfd& p, std::string& text, bool& open) {
      if (p.revents == 0) {
        return;
      }
      const ssize_t got = ::read(p.fd, block.data(), block.size());
      open = got > 0;
      text.append(block.data(), got > 0 ? static_cast<std::size_t>(got) : 0);
    };
    drain(fds[0], output, out_open);
    drain(fds[1], errors, err_open);
    if (in && fds[2].revents != 0) {
      const ssize_t put = ::write(in.get(), input.data() + written, input.size() - written);
      if (put < 0) {
        in.reset();  // it does not want to hear more; its status tells why
      } else {
        written += static_cast<std::size_t>(put);
      }
    }
  }
  return {};
}

// Runs a program of this host in another network namespace; what it writes.
Result<std::string> run_in(int ns, const std::vector<std::string>& words, const std::string& input) {
  FERRY_TRY(Pipe in, make_pipe());
  FERRY_TRY(Pipe out, make_pipe());
  FERRY_TRY(Pipe err, make_pipe());
  std::vector<char*> arguments;
  for (const std::string& word : words) {
    arguments.push_back(const_cast<char*>(word.c_str()));
  }
  arguments.push_back(nullptr);
  const pid_t pid = ::fork();
  if (pid < 0) {
    return sys_fail(fmt::format("fork({})", words.front()));
  }
  if (pid == 0) {
    // Only what is safe in the child of a process with threads (signal-safety(7)).
    if (::setns(ns, CLONE_NEWNET) == 0 && ::dup2(in.read.get(), 0) == 0 && ::dup2(out.write.get(), 1) == 1 &&
        ::dup2(err.write.get(), 2) == 2) {
      ::signal(SIGPIPE, SIG_DFL);
      ::execvp(arguments[0], arguments.data());
    }
    ::_exit(127);
  }
  in.read.reset();
  out.write.reset();
  err.write.reset();
  std::string output, errors;
  // A program that ends early must not end us.
  struct sigaction ignore {};
  struct sigaction before {};
  ignore.sa_handler = SIG_IGN;
  ::sigaction(SIGPIPE, &ignore, &before);
  const auto exchanged = exchange(std::move(in.write), input, out.read.get(), err.read.get(), output, errors);
  ::sigaction(SIGPIPE, &before, nullptr);
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  FERRY_CHECK(exchanged);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 127) {
    return fail(Kind::gone, "the program {} is not installed on this host", words.front());
  }
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    return fail(Kind::os, "{} failed: {}", words.front(), errors);
  }
  return output;
}

// What locks the network of a frozen tree (state/network_lock, state/net_gate; CRIU's has the same name) is no
// state of the tree.
bool is_lock(std::string_view table) { return table.starts_with("CRIU-") || table.starts_with("ferry-"); }

// Whether nftables has tables; a program for nothing would take milliseconds.
Result<bool> has_nftables() {
  FERRY_TRY(sys::Netlink netlink, sys::Netlink::open(NETLINK_NETFILTER));
  nfgenmsg head{};
  head.nfgen_family = AF_UNSPEC;
  bool any = false;
  const auto asked = netlink.request((NFNL_SUBSYS_NFTABLES << 8) | NFT_MSG_GETTABLE, NLM_F_DUMP,
                                     std::as_bytes(std::span(&head, 1)), "nftables", [&](Bytes body) -> Result<void> {
                                       const auto name = find(after_head<nfgenmsg>(body), NFTA_TABLE_NAME);
                                       any = any || !is_lock(text_of(name));
                                       return {};
                                     });
  return asked.has_value() && any;  // a kernel without nftables has no tables
}

template <class Take>
void each_line(std::string_view text, Take take) {
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    take(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
}

}  // namespace

std::string without_lock_tables(std::string_view rules) {
  std::string out;
  bool inside = false;
  each_line(rules, [&](std::string_view line) {
    if (line.starts_with("table ")) {  // table FAMILY NAME {
      const std::size_t name = std::min(line.find(' ', 6), line.size() - 1) + 1;
      inside = is_lock(line.substr(name));
    }
    if (!inside) {
      out.append(line).append("\n");
    }
    inside = inside && line != "}";
  });
  return out;
}

std::string without_lock_chain(std::string_view rules) {
  std::string out;
  each_line(rules, [&](std::string_view line) {
    const bool lock = line.find(":CRIU ") != std::string_view::npos || line.ends_with(" -j CRIU") ||
                      line.find("-A CRIU ") != std::string_view::npos;
    if (!lock) {
      out.append(line).append("\n");
    }
  });
  return out;
}

Result<void> save_firewall(image::Set& set, std::uint32_t id, int ns, Inside& inside) {
  FERRY_TRY(const UniqueFd proc, sys::open("/proc", O_PATH | O_DIRECTORY));
  FERRY_TRY(const bool nftables, inside.get<bool>(has_nftables));
  if (nftables) {
    FERRY_TRY(std::string rules, run_in(ns, {"nft", "list", "ruleset"}, ""));
    set.set_raw({image::Type::nftables, id}, without_lock_tables(rules));
  }
  struct Legacy {
    image::Type type;
    const char* tables;  // the tables in use
    const char* program;
  };
  for (const Legacy& legacy : {Legacy{image::Type::iptables, "ip_tables_names", "iptables-legacy-save"},
                               Legacy{image::Type::ip6tables, "ip6_tables_names", "ip6tables-legacy-save"}}) {
    const auto names = inside.get<std::string>(
        [&] { return sys::read_file_at(proc.get(), fmt::format("thread-self/net/{}", legacy.tables)); });
    if (!names.has_value() || names->empty()) {
      continue;
    }
    FERRY_TRY(std::string rules, run_in(ns, {legacy.program, "-c"}, ""));
    set.set_raw({legacy.type, id}, without_lock_chain(rules));
  }
  return {};
}

Result<void> restore_firewall(const image::Set& set, std::uint32_t id, int ns) {
  struct Step {
    image::Type type;
    std::vector<std::string> words;
  };
  const Step steps[] = {{image::Type::iptables, {"iptables-legacy-restore", "-c", "-w"}},
                        {image::Type::ip6tables, {"ip6tables-legacy-restore", "-c", "-w"}},
                        {image::Type::nftables, {"nft", "-f", "-"}}};
  for (const Step& step : steps) {
    const std::string* rules = set.raw({step.type, id});
    if (rules == nullptr || rules->find_first_not_of(" \t\n") == std::string::npos) {
      continue;
    }
    const std::string own =
        step.type == image::Type::nftables ? without_lock_tables(*rules) : without_lock_chain(*rules);
    FERRY_CHECK(run_in(ns, step.words, own).during("{}", image::file_name({step.type, id})));
  }
  return {};
}

}  // namespace ferry::state::net

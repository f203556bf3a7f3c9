// Network namespaces of the body's own, set up and judged with iproute2, nft and iptables.
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <fstream>
#include <regex>
#include <set>
#include <sstream>
#include <string>

#include "live/live.h"

namespace ferry::live {
namespace {

// What a command writes; a failure is part of it.
std::string run(const std::string& command) {
  std::string out;
  std::array<char, 4096> block;
  FILE* pipe = ::popen((command + " 2>&1").c_str(), "r");
  while (pipe != nullptr && ::fgets(block.data(), static_cast<int>(block.size()), pipe) != nullptr) {
    out += block.data();
  }
  const int status = pipe == nullptr ? -1 : ::pclose(pipe);
  return status == 0 ? out : out + "[status " + std::to_string(status) + " of: " + command + "]";
}
void must(const std::string& command) {
  const std::string said = run(command);
  EXPECT_EQ(said.find("[status"), std::string::npos) << said;
}

std::string value_of(const std::string& parameter) {
  std::ifstream file("/proc/sys/net/" + parameter);
  std::string value;
  std::getline(file, value);
  return value;
}
void set(const std::string& parameter, const std::string& value) {
  std::ofstream file("/proc/sys/net/" + parameter);
  file << value << std::flush;
  EXPECT_TRUE(file.good()) << parameter;
}

LIVE_TEST(Net, KeepsKernelParameters) {
  ASSERT_EQ(::unshare(CLONE_NEWNET), 0);
  must("ip link set lo up");
  const std::pair<const char*, const char*> values[] = {{"ipv4/ip_forward", "1"},
                                                        {"ipv4/conf/all/rp_filter", "2"},
                                                        {"ipv4/conf/default/accept_redirects", "1"},
                                                        {"ipv4/conf/lo/arp_ignore", "3"},
                                                        {"ipv6/conf/lo/hop_limit", "33"},
                                                        {"ipv6/conf/all/accept_ra", "0"},
                                                        {"ipv6/conf/default/accept_dad", "0"},
                                                        {"core/somaxconn", "777"},
                                                        {"unix/max_dgram_qlen", "55"},
                                                        {"ipv4/ip_local_port_range", "20000\t30000"},
                                                        {"ipv4/tcp_keepalive_time", "1234"},
                                                        {"ipv4/ping_group_range", "5\t7"}};
  for (const auto& [name, value] : values) {
    set(name, value);
  }
  checkpoint_here();
  for (const auto& [name, value] : values) {
    EXPECT_EQ(value_of(name), value) << name;
  }
}

// The old iptables want to write a lock file of the host.
LIVE_TEST_WITH(Net, KeepsPacketFilters, {.user_namespace = false}) {
  ASSERT_EQ(::unshare(CLONE_NEWNET), 0);
  must("ip link set lo up");
  must("nft 'add table inet t; add set inet t s { type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 192.0.2.1 } ; };"
       " add chain inet t c { type filter hook input priority 0; policy accept; };"
       " add rule inet t c ip saddr @s counter drop comment \"one\"; add rule inet t c tcp dport { 22, 80 } accept'");
  must("iptables-legacy -A INPUT -s 198.51.100.7 -p tcp --dport 99 -j DROP");
  must("iptables-legacy -t nat -A POSTROUTING -o lo -s 10.3.0.0/16 -j SNAT --to-source 10.3.0.1");
  must("ip6tables-legacy -A OUTPUT -d fd00:5::/64 -j REJECT");
  const auto rules = [] {
    const std::string all = run("nft list ruleset") + run("iptables-legacy-save") + run("ip6tables-legacy-save");
    std::istringstream lines(std::regex_replace(all, std::regex("#[^\n]*\n"), ""));
    std::multiset<std::string> sorted;  // tables stand in the order in which they came into use
    for (std::string line; std::getline(lines, line);) {
      sorted.insert(line);
    }
    return sorted;
  };
  const auto before = rules();
  EXPECT_EQ(before.count("-A INPUT -s 198.51.100.7/32 -p tcp -m tcp --dport 99 -j DROP"), 1U);
  checkpoint_here();
  EXPECT_EQ(rules(), before);
}

// A pair of interfaces between two namespaces of the tree.
}  // namespace
}  // namespace ferry::live

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

// Life times run; what a link counts changes.
std::string without_times(const std::string& text) {
  return std::regex_replace(
      text,
      std::regex(
          "(valid_lft|preferred_lft|expires) [0-9]+sec|state [A-Z]+|age [0-9]+|used [0-9/]+|[a-z_]+_timer +[0-9.]+"),
      "$1");
}

std::string state_of_network() {
  std::string all;
  for (const char* command : {"ip -details -oneline link", "ip -oneline address", "ip route show table all",
                              "ip -6 route show table all", "ip rule", "ip -6 rule", "ip neigh show nud permanent"}) {
    // In which order is no state.
    std::istringstream lines(without_times(run(command)));
    std::multiset<std::string> sorted;
    for (std::string line; std::getline(lines, line);) {
      sorted.insert(line);
    }
    all += std::string(command) + ":\n";
    for (const std::string& line : sorted) {
      all += line + "\n";
    }
  }
  return all;
}

// Addresses are tentative until nobody has answered for a second.
bool wait_until_settled() {
  for (int i = 0; i < 500; ++i) {
    if (run("ip -6 address show tentative").find("inet6") == std::string::npos) {
      return true;
    }
    ::usleep(10'000);
  }
  return false;
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

sockaddr_in address_of(const char* text, std::uint16_t port) {
  sockaddr_in out{};
  out.sin_family = AF_INET;
  out.sin_port = ::htons(port);
  EXPECT_EQ(::inet_pton(AF_INET, text, &out.sin_addr), 1);
  return out;
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

LIVE_TEST(Net, KeepsAddressesRoutesRulesAndNeighbours) {
  ASSERT_EQ(::unshare(CLONE_NEWNET), 0);
  must("ip link set lo up");
  must("ip link add name in index 7 type veth peer name out index 9");
  must("ip link set in address 02:00:00:00:00:07 mtu 1400 txqueuelen 77 alias 'an alias'");
  must("ip link set in up");
  must("ip link set out up");
  must("ip address add 10.9.8.7/24 broadcast 10.9.8.255 label in:one dev in");
  must("ip address add 10.9.8.8/24 dev in");
  must("ip address add 10.1.1.1 peer 10.1.1.2 dev out");
  must("ip address add 10.7.7.7/32 dev lo valid_lft 5000 preferred_lft 4000");
  must("ip -6 address add fd00:1::1/64 dev in nodad");
  must("ip -6 address add fd00:1::2/64 dev in noprefixroute nodad");
  must("ip -6 address del ::1/128 dev lo");
  ASSERT_TRUE(wait_until_settled()) << "5 s passed and an address was still tentative";
  must("ip route add default via 10.9.8.1 metric 5");
  must("ip route add 172.30.0.0/16 nexthop via 10.9.8.2 weight 2 nexthop dev out weight 3");
  must("ip route add blackhole 192.0.2.0/24 table 77");
  must("ip route add 10.50.0.0/16 via 10.9.8.3 src 10.9.8.8 mtu 1300 table 77");
  must("ip route del 10.9.8.0/24 dev in");
  must("ip route add 10.9.8.0/25 dev in scope link");
  must("ip -6 route add fd00:2::/64 via fd00:1::9 metric 99");
  must("ip -6 route add unreachable fd00:3::/64");
  must("ip rule add from 10.9.8.0/24 lookup 77 priority 500");
  must("ip rule add fwmark 5 iif in blackhole priority 600");
  must("ip rule del from all lookup default");
  must("ip -6 rule add to fd00:9::/64 lookup 77 priority 700");
  must("ip neigh add 10.9.8.44 lladdr 02:00:00:00:00:44 dev in nud permanent");
  must("ip neigh add fd00:1::44 lladdr 02:00:00:00:00:45 dev in nud permanent");
  const std::string before = state_of_network();
  checkpoint_here();
  ASSERT_TRUE(wait_until_settled()) << "5 s passed and a restored address was still tentative";
  EXPECT_EQ(state_of_network(), before);
}

LIVE_TEST(Net, KeepsLinksOfManyKinds) {
  ASSERT_EQ(::unshare(CLONE_NEWNET), 0);
  must("ip link add name br0 address 02:00:00:00:01:01 type bridge stp_state 0 ageing_time 20000");
  must("ip link add name port type veth peer name other");
  must("ip link set port master br0 up");
  must("ip link set br0 up");
  must("ip link set other up");
  must("ip link add name mv link other type macvlan mode bridge");
  if (::access("/dev/net/tun", F_OK) == 0) {  // a small /dev has no such device
    must("ip tuntap add name tap0 mode tap user 12 group 34");
    must("ip tuntap add name tun0 mode tun");
    must("ip link set tun0 mtu 1300");
  }
  must("ip address add 10.4.0.1/24 dev br0");
  must("ip address add 10.5.0.1/24 dev mv");
  ASSERT_TRUE(wait_until_settled()) << "5 s passed and an address was still tentative";
  const std::string before = state_of_network();
  checkpoint_here();
  ASSERT_TRUE(wait_until_settled()) << "5 s passed and a restored address was still tentative";
  EXPECT_EQ(state_of_network(), before);
}

// Who is reached through which port or peer, without the addresses that a link listens to itself.
std::multiset<std::string> forwarding() {
  std::istringstream lines(run("bridge fdb show"));
  std::multiset<std::string> out;
  for (std::string line; std::getline(lines, line);) {
    if (line.find(" dst ") != std::string::npos || line.find(" master ") != std::string::npos) {
      out.insert(line);
    }
  }
  return out;
}

LIVE_TEST(Net, KeepsLinksAboveOthersAndWhatTheyForward) {
  ASSERT_EQ(::unshare(CLONE_NEWNET), 0);
  must("ip link set lo up");
  // The one below has the higher number.
  must("ip link add name under index 50 address 02:00:00:00:03:01 type veth peer name port index 51");
  must("ip link add name tap index 20 link under type macvtap mode vepa");
  must(
      "ip link add name one index 21 type vxlan id 5 dev under remote 10.8.0.2 dstport 4789 ttl inherit tos 8 ageing 77");
  must("ip link add name many index 22 type vxlan id 6 dev under group 239.9.9.9 dstport 4790 srcport 1000 2000 proxy");
  must("ip link add name six index 23 type vxlan id 7 local fd00:8::1 dstport 4791 nolearning udp6zerocsumtx");
  must("ip link add name flow index 24 type vxlan external dstport 4792");
  must("ip link add name half index 25 txqueuelen 44 type ifb");
  must("ip link add name br0 index 26 type bridge");
  must("ip link set port master br0");
  must("ip link set one master br0");
  must("bridge link set dev one hairpin on priority 16 learning off isolated on");
  must("bridge fdb append 00:00:00:00:00:00 dev one dst 10.8.0.3 port 9999");
  must("bridge fdb add 02:00:00:00:00:07 dev one dst 10.8.0.4 vni 9 self");
  must("bridge fdb del 00:00:00:00:00:00 dev many dst 239.9.9.9");
  must("bridge fdb append 00:00:00:00:00:00 dev six dst fd00:8::2");
  must("bridge fdb add 02:00:00:00:00:08 dev port master static");
  must("bridge fdb add 02:00:00:00:00:09 dev br0 self");
  for (const char* name : {"under", "port", "tap", "one", "six", "flow", "half", "br0"}) {
    must("ip link set " + std::string(name) + " up");
  }
  must("ip address add 10.8.0.1/24 dev under");
  ASSERT_TRUE(wait_until_settled()) << "5 s passed and an address was still tentative";
  const std::string before = state_of_network();
  const auto forwarded = forwarding();
  EXPECT_EQ(forwarded.count("02:00:00:00:00:08 dev port master br0 static"), 1U);
  checkpoint_here();
  ASSERT_TRUE(wait_until_settled()) << "5 s passed and a restored address was still tentative";
  EXPECT_EQ(state_of_network(), before);
  EXPECT_EQ(forwarding(), forwarded);
}

LIVE_TEST_WITH(Net, RefusesATunnelThroughAnotherNetwork, {.refused = "sends through another network namespace"}) {
  ASSERT_EQ(::unshare(CLONE_NEWNET), 0);
  const std::string here = std::to_string(::getpid());
  int ends[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    char byte = ::unshare(CLONE_NEWNET) == 0 ? 'y' : 'n';
    must("ip link add name tunnel type vxlan id 5 dstport 4789");
    must("ip link set tunnel netns " + here);
    ::_exit(::write(ends[1], &byte, 1) == 1 && ::read(ends[1], &byte, 1) == 1 ? 0 : 1);
  }
  char byte = 0;
  ASSERT_EQ(::read(ends[0], &byte, 1), 1);
  ASSERT_EQ(byte, 'y');
  checkpoint_here();
  ASSERT_EQ(::write(ends[0], "e", 1), 1);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

LIVE_TEST_WITH(Net, RefusesQueueingDisciplines, {.refused = "has a queueing discipline (tbf)"}) {
  ASSERT_EQ(::unshare(CLONE_NEWNET), 0);
  must("ip link add name half type ifb");
  must("tc qdisc add dev half root tbf rate 1mbit burst 10k latency 10ms");
  const std::string before = run("tc qdisc show dev half");
  checkpoint_here();
  EXPECT_EQ(run("tc qdisc show dev half"), before);
}

// The old iptables want to write a lock file of the host.
LIVE_TEST_WITH(Net, KeepsPacketFilters, {.user_namespace = false}) {
  ASSERT_EQ(::unshare(CLONE_NEWNET), 0);
  must("ip link set lo up");
  must(
      "nft 'add table inet t; add set inet t s { type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 192.0.2.1 } ; };"
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
LIVE_TEST(Net, KeepsSeveralNamespacesAndThePairBetweenThem) {
  ASSERT_EQ(::unshare(CLONE_NEWNET), 0);
  must("ip link set lo up");
  int ends[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    char byte = ::unshare(CLONE_NEWNET) == 0 ? 'y' : 'n';
    if (::write(ends[1], &byte, 1) != 1 || ::read(ends[1], &byte, 1) != 1) {
      ::_exit(90);
    }
    must("ip link set lo up");
    must("ip link set inner up");
    must("ip address add 10.2.0.2/24 dev inner");
    set("ipv4/conf/inner/rp_filter", "2");
    if (!wait_until_settled()) {
      ::_exit(92);
    }
    const std::string before = without_times(run("ip -details -oneline link") + run("ip route show table all"));
    if (::write(ends[1], &byte, 1) != 1 || ::read(ends[1], &byte, 1) != 1) {
      ::_exit(91);
    }
    if (!wait_until_settled()) {
      ::_exit(93);
    }
    const std::string after = without_times(run("ip -details -oneline link") + run("ip route show table all"));
    if (before != after) {
      ::dprintf(2, "before:\n%s\nafter:\n%s\n", before.c_str(), after.c_str());
      ::_exit(1);
    }
    if (value_of("ipv4/conf/inner/rp_filter") != "2") {
      ::_exit(2);
    }
    const int client = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const sockaddr_in there = address_of("10.2.0.1", 5555);
    ::_exit(::connect(client, reinterpret_cast<const sockaddr*>(&there), sizeof there) == 0 ? 0 : 3);
  }
  char byte = 0;
  ASSERT_EQ(::read(ends[0], &byte, 1), 1);
  ASSERT_EQ(byte, 'y');
  must("ip link add name outer type veth peer name inner netns " + std::to_string(child));
  must("ip link set outer up");
  must("ip address add 10.2.0.1/24 dev outer");
  ASSERT_EQ(::write(ends[0], "g", 1), 1);
  ASSERT_EQ(::read(ends[0], &byte, 1), 1);

  checkpoint_here();

  const int server = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const sockaddr_in here = address_of("10.2.0.1", 5555);
  ASSERT_EQ(::bind(server, reinterpret_cast<const sockaddr*>(&here), sizeof here), 0);
  ASSERT_EQ(::listen(server, 1), 0);
  ASSERT_EQ(::write(ends[0], "j", 1), 1);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

}  // namespace
}  // namespace ferry::live

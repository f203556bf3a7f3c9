#include <arpa/inet.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>

#include "live/live.h"

namespace ferry::live {
namespace {

int option(int fd, int level, int name) {
  int value = -1;
  socklen_t size = sizeof value;
  EXPECT_EQ(::getsockopt(fd, level, name, &value, &size), 0) << level << "/" << name;
  return value;
}

LIVE_TEST(PacketSocket, KeepsItsInterfaceAndOptions) {
  const int fd = ::socket(AF_PACKET, SOCK_RAW, htons(ETH_P_IP));
  ASSERT_GE(fd, 0);
  sockaddr_ll own{};
  own.sll_family = AF_PACKET;
  own.sll_protocol = htons(ETH_P_IP);
  own.sll_ifindex = static_cast<int>(::if_nametoindex("lo"));
  ASSERT_EQ(::bind(fd, reinterpret_cast<const sockaddr*>(&own), sizeof own), 0);
  const int on = 1, version = TPACKET_V2, reserve = 8;
  ASSERT_EQ(::setsockopt(fd, SOL_PACKET, PACKET_AUXDATA, &on, sizeof on), 0);
  ASSERT_EQ(::setsockopt(fd, SOL_PACKET, PACKET_VERSION, &version, sizeof version), 0);
  ASSERT_EQ(::setsockopt(fd, SOL_PACKET, PACKET_RESERVE, &reserve, sizeof reserve), 0);
  ASSERT_EQ(::setsockopt(fd, SOL_PACKET, 23 /* PACKET_IGNORE_OUTGOING */, &on, sizeof on), 0);
  packet_mreq all{};
  all.mr_ifindex = own.sll_ifindex;
  all.mr_type = PACKET_MR_ALLMULTI;
  ASSERT_EQ(::setsockopt(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &all, sizeof all), 0);
  // Datagrams for port 7 of UDP only: nobody else disturbs.
  sock_filter code[] = {BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 14 + 9),
                        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 17, 0, 3),
                        BPF_STMT(BPF_LD | BPF_H | BPF_ABS, 14 + 20 + 2),
                        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 7, 0, 1),
                        BPF_STMT(BPF_RET | BPF_K, 0xffff),
                        BPF_STMT(BPF_RET | BPF_K, 0)};
  const sock_fprog program{6, code};
  ASSERT_EQ(::setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program), 0);
  checkpoint_here();
  sockaddr_ll after{};
  socklen_t size = sizeof after;
  ASSERT_EQ(::getsockname(fd, reinterpret_cast<sockaddr*>(&after), &size), 0);
  EXPECT_EQ(after.sll_ifindex, own.sll_ifindex);
  EXPECT_EQ(after.sll_protocol, own.sll_protocol);
  EXPECT_EQ(option(fd, SOL_PACKET, PACKET_AUXDATA), 1);
  EXPECT_EQ(option(fd, SOL_PACKET, PACKET_VERSION), TPACKET_V2);
  EXPECT_EQ(option(fd, SOL_PACKET, PACKET_RESERVE), 8);
  EXPECT_EQ(option(fd, SOL_PACKET, 23), 1);
  EXPECT_EQ(::setsockopt(fd, SOL_PACKET, PACKET_DROP_MEMBERSHIP, &all, sizeof all), 0) << "it was a member";
  const int sender = ::socket(AF_INET, SOCK_DGRAM, 0);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(7);
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_EQ(::sendto(sender, "ping", 4, 0, reinterpret_cast<const sockaddr*>(&to), sizeof to), 4);
  pollfd p{fd, POLLIN, 0};
  ASSERT_EQ(::poll(&p, 1, 5000), 1);
  char got[256] = {};
  const ssize_t n = ::recv(fd, got, sizeof got, 0);
  ASSERT_EQ(n, 14 + 20 + 8 + 4);
  EXPECT_EQ(std::memcmp(got + 42, "ping", 4), 0);
}

LIVE_TEST(PacketSocket, StaysUnbound) {
  const int fd = ::socket(AF_PACKET, SOCK_DGRAM, 0);
  ASSERT_GE(fd, 0);
  checkpoint_here();
  sockaddr_ll after{};
  socklen_t size = sizeof after;
  ASSERT_EQ(::getsockname(fd, reinterpret_cast<sockaddr*>(&after), &size), 0);
  EXPECT_EQ(after.sll_ifindex, 0);
  EXPECT_EQ(after.sll_protocol, 0);
  EXPECT_EQ(option(fd, SOL_SOCKET, SO_TYPE), SOCK_DGRAM);
}

}  // namespace
}  // namespace ferry::live

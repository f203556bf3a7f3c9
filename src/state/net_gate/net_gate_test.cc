#include "state/net_gate/net_gate.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <cstring>
#include <functional>
#include <thread>

namespace ferry::state::net_gate {
namespace {

// A datagram socket on lo of a new network namespace, and one that sends to it.
struct World {
  UniqueFd ns, in, out;
  sockaddr_in address{};

  void make() {
    ns = UniqueFd(::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
    in = UniqueFd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    out = UniqueFd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    ifreq up{};
    std::strcpy(up.ifr_name, "lo");
    up.ifr_flags = IFF_UP;
    ASSERT_EQ(::ioctl(in.get(), SIOCSIFFLAGS, &up), 0);
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ASSERT_EQ(::bind(in.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
    socklen_t size = sizeof address;
    ASSERT_EQ(::getsockname(in.get(), reinterpret_cast<sockaddr*>(&address), &size), 0);
  }
  // A packet that the output drops is an error of the call.
  void send(const char* text) const {
    (void)::sendto(out.get(), text, std::strlen(text), 0, reinterpret_cast<const sockaddr*>(&address), sizeof address);
  }
  [[nodiscard]] std::string receive(int wait_ms) const {
    pollfd p{in.get(), POLLIN, 0};
    char got[100] = {};
    if (::poll(&p, 1, wait_ms) != 1) {
      return "nothing";
    }
    const ssize_t n = ::recv(in.get(), got, sizeof got, MSG_DONTWAIT);
    return n < 0 ? "an error" : std::string(got, static_cast<std::size_t>(n));
  }
};

constexpr int kSoon = 5000, kNever = 30;  // milliseconds

// On a thread of its own, whose network namespace goes with it.
void in_new_world(const std::function<void(const World&)>& work) {
  std::string skipped;
  std::thread([&] {
    if (::unshare(CLONE_NEWNET) != 0) {
      skipped = "this needs root, for a network namespace";
      return;
    }
    World world;
    world.make();
    work(world);
  }).join();
  if (!skipped.empty()) {
    GTEST_SKIP() << skipped;
  }
}

#define EXPECT_OK(...)                                             \
  do {                                                             \
    const auto outcome = (__VA_ARGS__);                            \
    EXPECT_TRUE(outcome.has_value()) << outcome.error().message(); \
  } while (false)

Result<Withheld> withhold_all(int ns) {
  FERRY_TRY(Withheld out, Withheld::begin(ns));
  FERRY_CHECK(out.widen());
  return out;
}

TEST(NetGate, LetsNothingThroughUntilItIsOpened) {
  in_new_world([](const World& world) {
    EXPECT_OK(open(world.ns.get()));
    EXPECT_OK(shut(world.ns.get()));
    EXPECT_OK(shut(world.ns.get()));
    EXPECT_OK(shut_device(world.ns.get(), "lo"));
    world.send("lost");
    EXPECT_EQ(world.receive(kNever), "nothing");
    EXPECT_OK(open(world.ns.get()));
    world.send("through");
    EXPECT_EQ(world.receive(kSoon), "through");
  });
}

TEST(NetGate, IsShutAndLetsPassQuicklyOnceItIsPrepared) {
  in_new_world([](const World& world) {
    auto gate = Gate::hang(world.ns.get());
    ASSERT_TRUE(gate.has_value()) << gate.error().message();
    world.send("through");
    EXPECT_EQ(world.receive(kSoon), "through");
    EXPECT_OK(gate->shut());
    world.send("lost");
    EXPECT_EQ(world.receive(kNever), "nothing");
    EXPECT_OK(gate->let_pass());
    world.send("through again");
    EXPECT_EQ(world.receive(kSoon), "through again");
    EXPECT_OK(open(world.ns.get()));
  });
}

TEST(NetGate, StaysShutWhenItIsHungAgain) {
  in_new_world([](const World& world) {
    EXPECT_OK(shut(world.ns.get()));
    auto gate = Gate::hang(world.ns.get());
    ASSERT_TRUE(gate.has_value()) << gate.error().message();
    world.send("lost");
    EXPECT_EQ(world.receive(kNever), "nothing");
    EXPECT_OK(gate->let_pass());
    world.send("through");
    EXPECT_EQ(world.receive(kSoon), "through");
  });
}

TEST(NetGate, GivesWithheldPacketsToWhoGoesOn) {
  in_new_world([](const World& world) {
    auto withheld = withhold_all(world.ns.get());
    ASSERT_TRUE(withheld.has_value()) << withheld.error().message();
    world.send("one");
    world.send("two");
    EXPECT_EQ(world.receive(kNever), "nothing");
    EXPECT_OK(withheld->collect());
    EXPECT_EQ(withheld->packets().size(), 2U);
    world.send("three");
    EXPECT_OK(withheld->let_in());
    EXPECT_EQ(world.receive(kSoon), "one");
    EXPECT_EQ(world.receive(kSoon), "two");
    EXPECT_EQ(world.receive(kSoon), "three");
    world.send("four");
    EXPECT_EQ(world.receive(kSoon), "four");
  });
}

TEST(NetGate, DeliversWhatWasWithheldElsewhere) {
  in_new_world([](const World& world) {
    auto withheld = withhold_all(world.ns.get());
    ASSERT_TRUE(withheld.has_value()) << withheld.error().message();
    world.send("once");
    EXPECT_OK(withheld->discard());
    EXPECT_EQ(world.receive(kNever), "nothing");
    std::vector<std::string> packets = withheld->packets();
    ASSERT_EQ(packets.size(), 1U);
    std::string other = packets[0];
    other[16] = 10;  // 10.0.0.1 is not an address of this namespace
    packets.push_back(other);
    packets.push_back("no packet");
    const auto count = deliver(world.ns.get(), packets);
    ASSERT_TRUE(count.has_value()) << count.error().message();
    EXPECT_EQ(*count, 1U);
    EXPECT_EQ(world.receive(kSoon), "once");
  });
}

TEST(NetGate, IsOpenAgainWhenItsKeeperIsGone) {
  in_new_world([](const World& world) {
    {
      const auto withheld = withhold_all(world.ns.get());
      ASSERT_TRUE(withheld.has_value());
      world.send("dropped");
    }
    EXPECT_EQ(world.receive(kNever), "nothing");
    world.send("after");
    EXPECT_EQ(world.receive(kSoon), "after");
  });
}

TEST(NetGate, WithholdsNewConnectionsAlone) {
  in_new_world([](const World& world) {
    const UniqueFd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const UniqueFd client(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    ASSERT_EQ(::bind(listener.get(), reinterpret_cast<const sockaddr*>(&world.address), sizeof world.address), 0);
    ASSERT_EQ(::listen(listener.get(), 1), 0);
    auto withheld = Withheld::begin(world.ns.get());
    ASSERT_TRUE(withheld.has_value()) << withheld.error().message();
    world.send("no connection");
    EXPECT_EQ(world.receive(kSoon), "no connection");
    (void)::connect(client.get(), reinterpret_cast<const sockaddr*>(&world.address), sizeof world.address);
    pollfd p{listener.get(), POLLIN, 0};
    EXPECT_EQ(::poll(&p, 1, kNever), 0);
    EXPECT_OK(withheld->widen());
    world.send("everything");
    EXPECT_EQ(world.receive(kNever), "nothing");
    EXPECT_OK(withheld->let_in());
    EXPECT_EQ(::poll(&p, 1, kSoon), 1) << "the connection is there at once, not after a second attempt";
    EXPECT_EQ(world.receive(kSoon), "everything");
  });
}

}  // namespace
}  // namespace ferry::state::net_gate

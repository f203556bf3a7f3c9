#include "state/network_lock/network_lock.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <linux/netfilter.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <cstring>
#include <functional>
#include <thread>

#include "sys/nftables.h"

namespace ferry::state::network_lock {
namespace {

constexpr int kSoon = 5000, kNever = 30;  // milliseconds

// A TCP connection over lo of a new network namespace.
struct World {
  UniqueFd client, server;
  Connection connection;

  void make() {
    const UniqueFd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    ifreq up{};
    std::strcpy(up.ifr_name, "lo");
    up.ifr_flags = IFF_UP;
    ASSERT_EQ(::ioctl(listener.get(), SIOCSIFFLAGS, &up), 0);
    ASSERT_EQ(::listen(listener.get(), 1), 0);
    sockaddr_in address{};
    socklen_t size = sizeof address;
    ASSERT_EQ(::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &size), 0);
    client = UniqueFd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ASSERT_EQ(::connect(client.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
    connection.remote_port = ntohs(address.sin_port);
    ASSERT_EQ(::getsockname(client.get(), reinterpret_cast<sockaddr*>(&address), &size), 0);
    connection.local_port = ntohs(address.sin_port);
    connection.local = connection.remote = {127, 0, 0, 1};
    server = UniqueFd(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    ASSERT_TRUE(server);
  }
  [[nodiscard]] bool arrives(int wait_ms) const {
    char byte = 'x';
    EXPECT_EQ(::send(client.get(), &byte, 1, MSG_NOSIGNAL), 1);
    pollfd p{server.get(), POLLIN, 0};
    return ::poll(&p, 1, wait_ms) == 1;
  }
  // All that was sent meanwhile, once it is sent again.
  [[nodiscard]] bool catches_up(std::size_t count) const {
    char room[16];
    for (std::size_t got = 0; got < count;) {
      pollfd p{server.get(), POLLIN, 0};
      if (::poll(&p, 1, kSoon) != 1) {
        return false;
      }
      got += static_cast<std::size_t>(::recv(server.get(), room, sizeof room, 0));
    }
    return true;
  }
};

void in_new_world(const std::function<void(const World&)>& work) {
  bool skipped = false;
  std::thread([&] {
    if (::unshare(CLONE_NEWNET) != 0) {
      skipped = true;
      return;
    }
    World world;
    world.make();
    work(world);
  }).join();
  if (skipped) {
    GTEST_SKIP() << "this needs root, for a network namespace";
  }
}

bool has_table(const std::string& name) {
  auto nft = sys::Nftables::open();
  return nft.has_value() && nft->find_table(NFPROTO_INET, name).has_value();
}

TEST(NetworkLock, SilencesExactlyTheConnection) {
  in_new_world([](const World& world) {
    Request request;
    request.id = "one";
    request.connections.push_back(world.connection);
    request.connections.back().remote_port = 1;  // another one
    {
      auto other = Lock::take(request, -1, false);
      ASSERT_TRUE(other.has_value()) << other.error().message();
      EXPECT_TRUE(world.arrives(kSoon));
    }
    EXPECT_TRUE(world.catches_up(1));
    request.connections.back() = world.connection;
    auto lock = Lock::take(request, -1, false);
    ASSERT_TRUE(lock.has_value()) << lock.error().message();
    EXPECT_FALSE(world.arrives(kNever));
    ASSERT_TRUE(lock->release().has_value());
    EXPECT_FALSE(has_table("CRIU-one"));
    EXPECT_TRUE(world.catches_up(1));
  });
}

TEST(NetworkLock, SilencesAWholeNamespace) {
  in_new_world([](const World& world) {
    Request request;
    request.id = "two";
    request.whole = true;
    auto lock = Lock::take(request, -1, false);
    ASSERT_TRUE(lock.has_value()) << lock.error().message();
    EXPECT_FALSE(world.arrives(kNever));
  });
}

TEST(NetworkLock, StaysWhenItIsKeptAndIsTakenOver) {
  in_new_world([](const World& world) {
    Request request;
    request.id = "three";
    request.connections.push_back(world.connection);
    {
      auto lock = Lock::take(request, -1, false);
      ASSERT_TRUE(lock.has_value()) << lock.error().message();
      EXPECT_TRUE(has_table("CRIU-three"));
      ASSERT_TRUE(lock->keep().has_value());
    }
    EXPECT_TRUE(has_table("CRIU-three"));
    EXPECT_FALSE(world.arrives(kNever));
    {
      auto lock = Lock::take(request, -1, true);
      ASSERT_TRUE(lock.has_value()) << lock.error().message();
    }
    EXPECT_FALSE(has_table("CRIU-three"));
    EXPECT_TRUE(world.catches_up(1));
  });
}

TEST(NetworkLock, IsNothingIfItIsToBeSkipped) {
  Request request;
  request.method = NetworkLock::skip;
  auto lock = Lock::take(request, -1, false);
  ASSERT_TRUE(lock.has_value());
  EXPECT_FALSE(static_cast<bool>(*lock));
}

}  // namespace
}  // namespace ferry::state::network_lock

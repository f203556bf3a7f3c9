#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "live/live.h"

namespace ferry::live {
namespace {

// A small /dev, as in the flavours with a root of their own, has no such device.
#define OPEN_TUN_OR_SKIP(name)                                  \
  const int name = ::open("/dev/net/tun", O_RDWR | O_NONBLOCK); \
  if (name < 0) {                                               \
    GTEST_SKIP() << "/dev/net/tun: " << std::strerror(errno);   \
  }

ifreq named(const std::string& name, int flags) {
  ifreq out{};
  name.copy(out.ifr_name, sizeof out.ifr_name - 1);
  out.ifr_flags = static_cast<short>(flags);
  return out;
}

// Name and flags of the interface that a descriptor is attached to.
std::string attached(int fd) {
  ifreq request{};
  if (::ioctl(fd, TUNGETIFF, &request) != 0) {
    return std::strerror(errno);
  }
  return std::string(request.ifr_name) + " " + std::to_string(static_cast<unsigned short>(request.ifr_flags));
}

int number(int fd, unsigned long request) {
  int value = -1;
  EXPECT_EQ(::ioctl(fd, request, &value), 0);
  return value;
}

bool exists(const char* name) { return ::if_nametoindex(name) != 0; }

LIVE_TEST(Tun, KeepsItsInterfaceWithWhatItIsSetTo) {
  OPEN_TUN_OR_SKIP(fd);
  ::close(fd);
  ASSERT_EQ(::unshare(CLONE_NEWNET), 0);
  const int tap = ::open("/dev/net/tun", O_RDWR | O_NONBLOCK), tun = ::open("/dev/net/tun", O_RDWR),
            unattached = ::open("/dev/net/tun", O_RDWR);
  ifreq request = named("tap7", IFF_TAP | IFF_NO_PI | IFF_VNET_HDR);
  ASSERT_EQ(::ioctl(tap, TUNSETIFF, &request), 0);
  const int header = 12, buffer = 77777;
  ASSERT_EQ(::ioctl(tap, TUNSETVNETHDRSZ, &header), 0);
  ASSERT_EQ(::ioctl(tap, TUNSETSNDBUF, &buffer), 0);
  request = named("tun7", IFF_TUN);
  ASSERT_EQ(::ioctl(tun, TUNSETIFF, &request), 0);
  ASSERT_EQ(::ioctl(tun, TUNSETPERSIST, 1), 0);
  const std::string of_tap = attached(tap), of_tun = attached(tun), of_none = attached(unattached);
  const unsigned index = ::if_nametoindex("tap7");

  checkpoint_here();

  EXPECT_EQ(attached(tap), of_tap);
  EXPECT_EQ(attached(tun), of_tun);
  EXPECT_EQ(attached(unattached), of_none);
  EXPECT_EQ(number(tap, TUNGETVNETHDRSZ), 12);
  EXPECT_EQ(number(tap, TUNGETSNDBUF), 77777);
  EXPECT_EQ(::if_nametoindex("tap7"), index);
  EXPECT_EQ(::fcntl(tap, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
  ::close(tap);
  ::close(tun);
  EXPECT_FALSE(exists("tap7")) << "it ends with its descriptor";
  EXPECT_TRUE(exists("tun7")) << "it is persistent";
}

LIVE_TEST(Tun, KeepsSeveralQueuesAndDetachedOnes) {
  OPEN_TUN_OR_SKIP(probe);
  ::close(probe);
  ASSERT_EQ(::unshare(CLONE_NEWNET), 0);
  int queues[3];
  for (int& queue : queues) {
    queue = ::open("/dev/net/tun", O_RDWR);
    ifreq request = named("many", IFF_TAP | IFF_NO_PI | IFF_MULTI_QUEUE);
    ASSERT_EQ(::ioctl(queue, TUNSETIFF, &request), 0);
  }
  ifreq detach = named("many", IFF_DETACH_QUEUE);
  ASSERT_EQ(::ioctl(queues[1], TUNSETQUEUE, &detach), 0);
  std::string before[3];
  for (int i = 0; i < 3; ++i) {
    before[i] = attached(queues[i]);
  }

  checkpoint_here();

  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(attached(queues[i]), before[i]) << "queue " << i;
  }
  ifreq attach = named("many", IFF_ATTACH_QUEUE);
  EXPECT_EQ(::ioctl(queues[1], TUNSETQUEUE, &attach), 0);
}

LIVE_TEST_WITH(Tun, IsRefusedInTheNetworkOfTheHost,
               {.refused = "of this host, and the interface does not go with the tree",
                .pid_namespace = false,
                .leave_running = false,
                .user_namespace = false}) {
  OPEN_TUN_OR_SKIP(fd);
  const std::string name = "fl" + std::to_string(::getpid());
  ifreq request = named(name, IFF_TUN);
  ASSERT_EQ(::ioctl(fd, TUNSETIFF, &request), 0);
  const std::string before = attached(fd);
  checkpoint_here();
  EXPECT_EQ(attached(fd), before);
}

}  // namespace
}  // namespace ferry::live

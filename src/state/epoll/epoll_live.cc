#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>

#include "live/live.h"

namespace ferry::live {
namespace {

LIVE_TEST(Epoll, KeepsWatchesAndTheirData) {
  const int list = ::epoll_create1(0);
  const int quiet = ::eventfd(0, 0), loud = ::eventfd(1, 0);
  epoll_event event{};
  event.events = EPOLLIN | EPOLLET;
  event.data.u64 = 0x1122334455667788;
  ASSERT_EQ(::epoll_ctl(list, EPOLL_CTL_ADD, loud, &event), 0);
  event.events = EPOLLIN;
  event.data.u64 = 7;
  ASSERT_EQ(::epoll_ctl(list, EPOLL_CTL_ADD, quiet, &event), 0);
  checkpoint_here();
  epoll_event got[4] = {};
  ASSERT_EQ(::epoll_wait(list, got, 4, 0), 1);
  EXPECT_EQ(got[0].data.u64, 0x1122334455667788U);
  EXPECT_EQ(::epoll_ctl(list, EPOLL_CTL_ADD, quiet, &event), -1);
  EXPECT_EQ(errno, EEXIST);
  EXPECT_EQ(::epoll_ctl(list, EPOLL_CTL_DEL, quiet, nullptr), 0);
}

}  // namespace
}  // namespace ferry::live

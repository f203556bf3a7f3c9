#include "state/network_lock/iptables.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace ferry::state::network_lock {
namespace {

using testing::HasSubstr;

Connection connection() {
  Connection c;
  c.local = {10, 0, 0, 1};
  c.remote = {10, 0, 0, 2};
  c.local_port = 80;
  c.remote_port = 5000;
  return c;
}

TEST(IptablesLock, DropsExactlyTheConnections) {
  Request request;
  request.connections.push_back(connection());
  const std::string text = iptables_text(request, false, true);
  EXPECT_THAT(
      text,
      HasSubstr(
          "-I INPUT -s 10.0.0.2 -d 10.0.0.1 -p tcp -m mark ! --mark 0xc114 -m tcp --sport 5000 --dport 80 -j DROP"));
  EXPECT_THAT(
      text,
      HasSubstr(
          "-I OUTPUT -s 10.0.0.1 -d 10.0.0.2 -p tcp -m mark ! --mark 0xc114 -m tcp --sport 80 --dport 5000 -j DROP"));
  EXPECT_EQ(iptables_text(request, true, true), "") << "there is none over IPv6";
  EXPECT_THAT(iptables_text(request, false, false), HasSubstr("-D INPUT -s 10.0.0.2"));
}

TEST(IptablesLock, DropsAllButMarkedPacketsOfAWholeNamespace) {
  Request request;
  request.whole = true;
  EXPECT_THAT(iptables_text(request, true, true),
              HasSubstr("-A CRIU -m mark --mark 0xc114 -j ACCEPT\n-A CRIU -j DROP"));
  EXPECT_THAT(iptables_text(request, true, false), HasSubstr("-X CRIU"));
}

}  // namespace
}  // namespace ferry::state::network_lock

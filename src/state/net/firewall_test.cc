#include "state/net/firewall.h"

#include <gtest/gtest.h>

namespace ferry::state::net {
namespace {

TEST(Firewall, LeavesOutTablesThatOnlyLockedTheNetwork) {
  const std::string own = "table inet mine {\n\tchain c {\n\t}\n}\n";
  const std::string lock = "table inet CRIU-12-34 {\n\tchain output {\n\t\tdrop\n\t}\n}\n";
  EXPECT_EQ(without_lock_tables(own + lock + own), own + own);
  EXPECT_EQ(without_lock_tables("table inet ferry-shut { # progname criu\n}\n" + own), own);
  EXPECT_EQ(without_lock_tables(""), "");
}

TEST(Firewall, LeavesOutTheChainThatOnlyLockedTheNetwork) {
  EXPECT_EQ(without_lock_chain("*filter\n:INPUT ACCEPT [0:0]\n:CRIU - [0:0]\n[0:0] -A INPUT -j CRIU\n-A CRIU -j DROP\n"
                               "-A INPUT -s 1.2.3.4/32 -j DROP\nCOMMIT\n"),
            "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -s 1.2.3.4/32 -j DROP\nCOMMIT\n");
}

}  // namespace
}  // namespace ferry::state::net

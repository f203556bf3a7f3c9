#include "state/inet_socket/membership.h"

#include <gtest/gtest.h>
#include <sys/socket.h>

namespace ferry::state::inet_socket {
namespace {

TEST(Igmp, ReadsGroupsWithTheirInterface) {
  const auto groups = parse_igmp(
      "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n"
      "1\tlo        :     1      V3\n"
      "\t\t\t\t010000E0     1 0:00000000\t\t0\n"
      "27\teth0      :     2      V3\n"
      "\t\t\t\tFB0000E0     1 0:00000000\t\t1\n"
      "\t\t\t\t010000E0     1 0:00000000\t\t0\n");
  ASSERT_EQ(groups.size(), 1U) << "224.0.0.1 needs nobody to join it";
  EXPECT_EQ(groups[0], (Group{27, "eth0", AF_INET, std::string("\xe0\x00\x00\xfb", 4)}));
}

TEST(Igmp, ReadsIpv6Groups) {
  const auto groups = parse_igmp6(
      "1    lo              ff020000000000000000000000000001     1 0000000C 0\n"
      "2    eth0            ff150000000000000000000000000077     1 00000004 0\n");
  ASSERT_EQ(groups.size(), 1U);
  EXPECT_EQ(groups[0].interface_name, "eth0");
  EXPECT_EQ(groups[0].interface_index, 2U);
  EXPECT_EQ(groups[0].address, std::string("\xff\x15\0\0\0\0\0\0\0\0\0\0\0\0\0\x77", 16));
}

TEST(Igmp, SurvivesNonsense) {
  EXPECT_TRUE(parse_igmp("\t\t\tFB0000E0\n x\n\n").empty());
  EXPECT_TRUE(parse_igmp6("1 lo ff\nx\n").empty());
}

}  // namespace
}  // namespace ferry::state::inet_socket

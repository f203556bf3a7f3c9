#include "state/seccomp/seccomp.h"

#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>

namespace ferry::state::seccomp {
namespace {

pb::SeccompFilter filter(const std::string& program, std::optional<std::uint32_t> prev = std::nullopt) {
  pb::SeccompFilter out;
  out.set_filter(program);
  if (prev) {
    out.set_prev(*prev);
  }
  return out;
}

TEST(SeccompChain, SharedFiltersAreListedOnce) {
  pb::SeccompEntry all;
  const std::uint32_t base = intern(all, filter("allow"));
  const std::uint32_t a = intern(all, filter("one", base));
  EXPECT_EQ(intern(all, filter("allow")), base);
  EXPECT_EQ(intern(all, filter("one", base)), a);
  EXPECT_NE(intern(all, filter("one")), a) << "the same program above another chain is another filter";
  EXPECT_EQ(all.seccomp_filters_size(), 3);
}

TEST(SeccompChain, IsReadFromTheOldest) {
  pb::SeccompEntry all;
  const std::uint32_t newest = intern(all, filter("c", intern(all, filter("b", intern(all, filter("a"))))));
  const auto filters = chain(all, newest);
  ASSERT_TRUE(filters.has_value());
  ASSERT_EQ(filters->size(), 3U);
  EXPECT_EQ(filters->front()->filter(), "a");
  EXPECT_EQ(filters->back()->filter(), "c");
}

TEST(SeccompChain, RefusesLinksThatLeadNowhere) {
  pb::SeccompEntry all;
  *all.add_seccomp_filters() = filter("a", 0);
  EXPECT_FALSE(chain(all, 0).has_value()) << "a circle";
  EXPECT_FALSE(chain(all, 1).has_value()) << "beyond the end";
  *all.add_seccomp_filters() = filter("b", 7);
  EXPECT_FALSE(chain(all, 1).has_value()) << "a link beyond the end";
}

TEST(SeccompProgram, KnowsWhetherASupervisorIsAsked) {
  const sock_filter asks[] = {{BPF_LD | BPF_W | BPF_ABS, 0, 0, 0}, {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_USER_NOTIF}};
  const sock_filter allows[] = {{BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW},
                                // the same number in another instruction is only a constant
                                {BPF_LD | BPF_IMM, 0, 0, SECCOMP_RET_USER_NOTIF}};
  EXPECT_TRUE(asks_supervisor(std::as_bytes(std::span(asks))));
  EXPECT_FALSE(asks_supervisor(std::as_bytes(std::span(allows))));
}

}  // namespace
}  // namespace ferry::state::seccomp

#include <linux/mempolicy.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <thread>

#include "live/live.h"

namespace ferry::live {
namespace {

struct Policy {
  int mode = -1;
  std::uint64_t nodes[16] = {};
};
constexpr unsigned long kCount = sizeof(Policy::nodes) * 8 + 1;

Policy policy_of(const void* address) {
  Policy out;
  EXPECT_EQ(::syscall(SYS_get_mempolicy, &out.mode, out.nodes, kCount, address, address == nullptr ? 0 : MPOL_F_ADDR),
            0);
  return out;
}

bool kernel_has_policies() { return ::syscall(SYS_get_mempolicy, nullptr, nullptr, 0, nullptr, 0) == 0; }

char* memory(std::size_t pages, int flags) {
  void* at = ::mmap(nullptr, pages << 12, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | flags, -1, 0);
  return at == MAP_FAILED ? nullptr : static_cast<char*>(at);
}

LIVE_TEST(Numa, KeepsPoliciesOfMappings) {
  if (!kernel_has_policies()) {
    GTEST_SKIP() << "a kernel without NUMA";
  }
  const std::uint64_t first = 1;  // every machine has node 0
  char* const at = memory(8, MAP_PRIVATE);
  char* const shared = memory(4, MAP_SHARED);
  ASSERT_NE(at, nullptr);
  ASSERT_NE(shared, nullptr);
  ASSERT_EQ(::syscall(SYS_mbind, at + 4096, 8192, MPOL_BIND | MPOL_F_STATIC_NODES, &first, 65, 0), 0);
  ASSERT_EQ(::syscall(SYS_mbind, at + 5 * 4096, 4096, MPOL_INTERLEAVE, &first, 65, 0), 0);
  ASSERT_EQ(::syscall(SYS_mbind, at + 7 * 4096, 4096, MPOL_LOCAL, nullptr, 0, 0), 0);
  ASSERT_EQ(::syscall(SYS_mbind, shared, 4 * 4096, MPOL_PREFERRED, &first, 65, 0), 0);
  at[4096] = shared[0] = 'x';
  checkpoint_here();
  const auto private_policy = policy_of(at + 2 * 4096);
  EXPECT_EQ(private_policy.mode, MPOL_BIND | MPOL_F_STATIC_NODES);
  EXPECT_EQ(private_policy.nodes[0], 1U);
  EXPECT_EQ(policy_of(at + 5 * 4096).mode, MPOL_INTERLEAVE);
  EXPECT_EQ(policy_of(at + 7 * 4096).mode, MPOL_LOCAL);
  EXPECT_EQ(policy_of(shared).mode, MPOL_PREFERRED);
  EXPECT_EQ(policy_of(shared).nodes[0], 1U);
  for (const int page : {0, 3, 4, 6}) {
    EXPECT_EQ(policy_of(at + page * 4096).mode, MPOL_DEFAULT) << "page " << page;
  }
  EXPECT_EQ(at[4096], 'x');
  EXPECT_EQ(shared[0], 'x');
}

// More than one batch asks for, each a mapping of its own.
LIVE_TEST(Numa, KeepsPoliciesOfManyMappings) {
  if (!kernel_has_policies()) {
    GTEST_SKIP() << "a kernel without NUMA";
  }
  constexpr std::size_t kMany = 20000;
  const std::uint64_t first = 1;
  char* const at = memory(kMany, MAP_PRIVATE);
  ASSERT_NE(at, nullptr);
  for (std::size_t page = 0; page < kMany; page += 2) {
    ASSERT_EQ(::syscall(SYS_mbind, at + (page << 12), 4096, MPOL_BIND, &first, 65, 0), 0) << page;
  }
  checkpoint_here();
  for (std::size_t page = 0; page < kMany; ++page) {
    ASSERT_EQ(policy_of(at + (page << 12)).mode, page % 2 == 0 ? MPOL_BIND : MPOL_DEFAULT) << page;
  }
}

LIVE_TEST(Numa, KeepsPoliciesOfThreads) {
  if (!kernel_has_policies()) {
    GTEST_SKIP() << "a kernel without NUMA";
  }
  const std::uint64_t first = 1;
  constexpr int kThreads = 40;  // so many that they are looked at together
  std::atomic<int> ready{0};
  std::atomic<bool> go{false};
  std::vector<Policy> found(kThreads);
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      if (i % 10 == 3) {
        EXPECT_EQ(::syscall(SYS_set_mempolicy, MPOL_INTERLEAVE, &first, 65), 0);
      }
      ++ready;
      ready.notify_one();
      go.wait(false);
      found[static_cast<std::size_t>(i)] = policy_of(nullptr);
    });
  }
  for (int now = ready; now < kThreads; now = ready) {
    ready.wait(now);
  }
  ASSERT_EQ(::syscall(SYS_set_mempolicy, MPOL_PREFERRED, &first, 65), 0);
  checkpoint_here();
  go = true;
  go.notify_all();
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(policy_of(nullptr).mode, MPOL_PREFERRED);
  EXPECT_EQ(policy_of(nullptr).nodes[0], 1U);
  for (int i = 0; i < kThreads; ++i) {
    EXPECT_EQ(found[static_cast<std::size_t>(i)].mode, i % 10 == 3 ? MPOL_INTERLEAVE : MPOL_DEFAULT) << i;
  }
}

}  // namespace
}  // namespace ferry::live

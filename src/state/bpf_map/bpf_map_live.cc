#include <linux/bpf.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>

#include "live/live.h"

namespace ferry::live {
namespace {

int bpf(int command, bpf_attr& attributes) {
  return static_cast<int>(::syscall(SYS_bpf, command, &attributes, sizeof attributes));
}

int create(std::uint32_t type, std::uint32_t entries) {
  bpf_attr attributes{};
  attributes.map_type = type;
  attributes.key_size = 4;
  attributes.value_size = 8;
  attributes.max_entries = entries;
  return bpf(BPF_MAP_CREATE, attributes);
}

bool put(int map, std::uint32_t key, std::uint64_t value) {
  bpf_attr attributes{};
  attributes.map_fd = static_cast<std::uint32_t>(map);
  attributes.key = reinterpret_cast<std::uint64_t>(&key);
  attributes.value = reinterpret_cast<std::uint64_t>(&value);
  return bpf(BPF_MAP_UPDATE_ELEM, attributes) == 0;
}

std::uint64_t get(int map, std::uint32_t key) {
  std::uint64_t value = ~std::uint64_t{0};
  bpf_attr attributes{};
  attributes.map_fd = static_cast<std::uint32_t>(map);
  attributes.key = reinterpret_cast<std::uint64_t>(&key);
  attributes.value = reinterpret_cast<std::uint64_t>(&value);
  return bpf(BPF_MAP_LOOKUP_ELEM, attributes) == 0 ? value : ~std::uint64_t{0};
}

LIVE_TEST(BpfMap, KeepsArraysAndHashes) {
  const int array = create(BPF_MAP_TYPE_ARRAY, 100), hash = create(BPF_MAP_TYPE_HASH, 100);
  if (array < 0 || hash < 0) {
    GTEST_SKIP() << "no eBPF maps";
  }
  const int again = ::dup(hash);
  for (std::uint32_t i = 0; i < 100; ++i) {
    ASSERT_TRUE(put(array, i, i * 3));
  }
  for (std::uint32_t i = 0; i < 50; ++i) {
    ASSERT_TRUE(put(hash, i * 1000, i + (std::uint64_t{1} << 40)));
  }
  checkpoint_here();
  for (std::uint32_t i = 0; i < 100; ++i) {
    EXPECT_EQ(get(array, i), i * 3);
  }
  for (std::uint32_t i = 0; i < 50; ++i) {
    EXPECT_EQ(get(again, i * 1000), i + (std::uint64_t{1} << 40));
  }
  EXPECT_EQ(get(hash, 1), ~std::uint64_t{0});
  EXPECT_TRUE(put(again, 1, 7));
  EXPECT_EQ(get(hash, 1), 7U);
}

LIVE_TEST_WITH(BpfMap, RefusesOtherTypes, {.refused = "only arrays and hashes"}) {
  const int map = create(BPF_MAP_TYPE_LRU_HASH, 10);
  if (map < 0) {
    GTEST_SKIP() << "no eBPF maps";
  }
  checkpoint_here();
  EXPECT_TRUE(put(map, 1, 1));
}

}  // namespace
}  // namespace ferry::live

#include "state/memory/lazy.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <vector>

#include "image/page_store.h"
#include "state/memory/memory.h"
#include "sys/missing_pages.h"

namespace ferry::state::memory {
namespace {

constexpr std::size_t kPage = image::kPageSize;

// Not registered, what is missing would be zeros, and nobody would be told.
TEST(LazyMemory, WaitsInEveryMappingThatAnExtentLiesIn) {
  const UniqueFd uffd(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)));
  if (!uffd) {
    GTEST_SKIP() << "userfaultfd(2) needs CAP_SYS_PTRACE";
  }
  ASSERT_TRUE(sys::missing_negotiate(uffd.get()).has_value());
  // Three neighbours that stay three mappings, since the one in the middle has another protection.
  auto* const begin =
      static_cast<std::byte*>(::mmap(nullptr, 3 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(begin, MAP_FAILED);
  ASSERT_EQ(::mprotect(begin + kPage, kPage, PROT_READ), 0);
  const auto address = reinterpret_cast<std::uint64_t>(begin);
  pb::MmEntry mm;
  for (std::size_t i = 0; i < 3; ++i) {
    pb::VmaEntry& vma = *mm.add_vmas();
    vma.set_start(address + i * kPage);
    vma.set_end(address + (i + 1) * kPage);
    vma.set_flags(MAP_PRIVATE | MAP_ANONYMOUS);
    vma.set_status(kAnonPrivate);
  }
  ASSERT_TRUE(await_pages(uffd.get(), mm, {{.vaddr = address, .page_count = 3}}).has_value());
  const std::vector<std::byte> content(kPage, std::byte{7});
  for (std::size_t i = 0; i < 3; ++i) {
    const auto filled = sys::missing_copy(uffd.get(), address + i * kPage, content.data(), kPage);
    ASSERT_TRUE(filled.has_value()) << i;
    EXPECT_EQ(filled->end, sys::Fill::done) << i;
  }
}

}  // namespace
}  // namespace ferry::state::memory

#include "sys/kernel_memory.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <fstream>
#include <optional>
#include <string>

#include "sys/btf.h"

namespace ferry::sys {
namespace {

class KernelMemoryOfThisKernel : public ::testing::Test {
 protected:
  void SetUp() override {
    auto opened = KernelMemory::open();
    auto types = Btf::of_kernel();
    if (!opened.has_value() || !types.has_value()) {
      GTEST_SKIP() << (opened.has_value() ? types.error().message() : opened.error().message());
    }
    memory = std::move(*opened);
    btf = std::move(*types);
  }
  std::uint32_t at(const char* structure, const char* field) const {
    const auto type = btf->structure(structure);
    const auto found = type.has_value() ? btf->field(*type, field) : Result<Btf::Field>();
    EXPECT_TRUE(found.has_value() && found->size != 0) << structure << " " << field;
    return found.has_value() ? found->offset : 0;
  }
  KernelMemory memory;
  std::optional<Btf> btf;
};

TEST_F(KernelMemoryOfThisKernel, LeadsFromThisTaskToItsFiles) {
  const auto task = memory.current_task();
  ASSERT_TRUE(task.has_value()) << task.error().message();
  std::string name;
  std::getline(std::ifstream("/proc/thread-self/comm"), name);
  const auto comm = memory.read<std::array<char, 16>>(*task + at("task_struct", "comm"));
  ASSERT_TRUE(comm.has_value()) << comm.error().message();
  EXPECT_STREQ(comm->data(), name.c_str());
  const auto files = memory.read<std::uint64_t>(*task + at("task_struct", "files"));
  ASSERT_TRUE(files.has_value());
  const auto table = memory.read<std::uint64_t>(*files + at("files_struct", "fdt"));
  ASSERT_TRUE(table.has_value());
  const auto list = memory.read<std::uint64_t>(*table + at("fdtable", "fd"));
  ASSERT_TRUE(list.has_value());
  const int copy = ::dup(1);
  const auto slots = memory.read_array<std::uint64_t>(*list, static_cast<std::size_t>(copy) + 1);
  ::close(copy);
  ASSERT_TRUE(slots.has_value());
  EXPECT_NE((*slots)[1], 0U);
  EXPECT_EQ((*slots)[1], slots->back());
}

TEST_F(KernelMemoryOfThisKernel, ReadsMoreThanGoesAtOnce) {
  const auto task = memory.current_task();
  ASSERT_TRUE(task.has_value());
  const auto type = btf->structure("task_struct");
  ASSERT_TRUE(type.has_value());
  const auto all = memory.read_array<char>(*task, btf->size_of(*type));
  ASSERT_TRUE(all.has_value()) << all.error().message();
  const auto comm = memory.read<std::array<char, 16>>(*task + at("task_struct", "comm"));
  ASSERT_TRUE(comm.has_value());
  EXPECT_STREQ(all->data() + at("task_struct", "comm"), comm->data());
}

TEST_F(KernelMemoryOfThisKernel, SaysWhereThereIsNothing) {
  for (const std::uint64_t nowhere : {std::uint64_t{0}, std::uint64_t{4096}, ~std::uint64_t{0} - 7}) {
    const auto got = memory.read<std::uint64_t>(nowhere);
    ASSERT_FALSE(got.has_value()) << nowhere;
    EXPECT_EQ(got.error().kind, Kind::os) << got.error().message();
  }
}

}  // namespace
}  // namespace ferry::sys

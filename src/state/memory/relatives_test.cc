#include "state/memory/relatives.h"

#include <gtest/gtest.h>

namespace ferry::state::memory {
namespace {

sys::Stat program_at(std::uint64_t code, std::uint64_t stack) {
  sys::Stat out;
  out.start_code = code;
  out.start_stack = stack;
  return out;
}

TEST(Relatives, AreThoseOfOneExecve) {
  const sys::Stat parent = program_at(0x1000, 0x9000);
  const sys::Stat other_stack = program_at(0x1000, 0x8000);
  const sys::Stat child = program_at(0x1000, 0x9000);
  const sys::Stat other_code = program_at(0x2000, 0x9000);
  const std::vector<const sys::Stat*> all{&parent, &other_stack, &child, &other_code};
  EXPECT_EQ(readings_of(all), (std::vector{Reading::sharing, Reading::fast, Reading::sharing, Reading::fast}));
}

TEST(Relatives, NobodyHasNone) { EXPECT_TRUE(readings_of(std::span<const sys::Stat* const>()).empty()); }

}  // namespace
}  // namespace ferry::state::memory

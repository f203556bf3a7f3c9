#include "engine/reference_file.h"

#include <gtest/gtest.h>

namespace ferry::engine {
namespace {

TEST(ReferenceFile, TakesOneAbsolutePath) {
  const auto r =
      parse_reference(R"({"version":1,"id":"x","images":"/a/b","hostname":"h","tcp_close":true,"lazy_pages":"/s"})");
  ASSERT_TRUE(r.has_value()) << r.error().message();
  EXPECT_EQ(r->images, "/a/b");
  EXPECT_EQ(r->hostname, "h");
  EXPECT_TRUE(r->tcp_close);
  EXPECT_EQ(r->lazy_pages, "/s");
}

TEST(ReferenceFile, RefusesWhatItCannotFollow) {
  for (const char* bad : {"", "[]", "{}", R"({"version":2,"images":"/a"})", R"({"version":1})",
                          R"({"version":1,"images":"a"})", R"({"version":1,"images":"/a","receiver":"/b"})"}) {
    EXPECT_FALSE(parse_reference(bad).has_value()) << bad;
  }
}

}  // namespace
}  // namespace ferry::engine

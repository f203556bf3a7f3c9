#include "state/binfmt_misc/binfmt_misc.h"

#include <gtest/gtest.h>

namespace ferry::state::binfmt_misc {
namespace {

TEST(BinfmtMiscFormat, OfAPattern) {
  const auto entry =
      parse("armeb", "enabled\ninterpreter /usr/bin/qemu:x\nflags: OCF\noffset 2\nmagic 7f454c46\nmask fffffffe\n");
  ASSERT_TRUE(entry.has_value()) << entry.error().message();
  EXPECT_TRUE(entry->enabled());
  EXPECT_FALSE(entry->has_extension());
  EXPECT_EQ(registration(*entry).value(), "|armeb|M|2|\\x7f\\x45\\x4c\\x46|\\xff\\xff\\xff\\xfe|/usr/bin/qemu:x|OCF");
}

TEST(BinfmtMiscFormat, OfAnExtension) {
  const auto entry = parse("java", "disabled\ninterpreter /usr/bin/java\nflags: \nextension .jar\n");
  ASSERT_TRUE(entry.has_value()) << entry.error().message();
  EXPECT_FALSE(entry->enabled());
  EXPECT_EQ(registration(*entry).value(), ":java:E::jar::/usr/bin/java:");
}

TEST(BinfmtMiscFormat, ThatIsNotKnownIsRefused) {
  for (const char* text :
       {"", "enabled\n", "enabled\ninterpreter /x\nflags: \n", "enabled\ninterpreter /x\nextension .y\nnew thing\n",
        "enabled\ninterpreter /x\noffset z\nmagic 00\n"}) {
    EXPECT_EQ(parse("x", text).error().kind, Kind::corrupt) << text;
  }
  pb::BinfmtMiscEntry entry;
  entry.set_name("x");
  entry.set_interpreter("/x");
  entry.set_magic("7");
  EXPECT_EQ(registration(entry).error().kind, Kind::corrupt);
  entry.set_magic("7f");
  EXPECT_EQ(registration(entry).value(), ":x:M:0:\\x7f::/x:");
  entry.set_interpreter("/:|;,@%+=~");
  EXPECT_EQ(registration(entry).error().kind, Kind::corrupt);
  entry.set_interpreter("/x");
  for (const char* name : {"", ".", "..", "register", "status", "../x", "/etc/passwd"}) {
    entry.set_name(name);
    EXPECT_EQ(registration(entry).error().kind, Kind::corrupt) << name;
  }
}

TEST(BinfmtMisc, ThatChangedDuringAMoveIsRefused) {
  const auto set_of = [](const char* text) {
    image::Set set;
    set.add({image::Type::binfmt_misc}, parse("x", text).value());
    return set;
  };
  const image::Set before = set_of("enabled\ninterpreter /x\nflags: \nextension .y\n");
  EXPECT_TRUE(check_same(before, set_of("enabled\ninterpreter /x\nflags: \nextension .y\n")).has_value());
  EXPECT_TRUE(check_same(image::Set(), image::Set()).has_value());
  for (const char* now :
       {"disabled\ninterpreter /x\nflags: \nextension .y\n", "enabled\ninterpreter /z\nflags: \nextension .y\n"}) {
    EXPECT_EQ(check_same(before, set_of(now)).error().kind, Kind::unsupported) << now;
  }
  EXPECT_EQ(check_same(before, image::Set()).error().kind, Kind::unsupported);
  EXPECT_EQ(check_same(image::Set(), before).error().kind, Kind::unsupported);
}

}  // namespace
}  // namespace ferry::state::binfmt_misc

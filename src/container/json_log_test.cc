#include "container/json_log.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "base/unique_fd.h"
#include "container/temp_directory.h"

namespace ferry::container {
namespace {

std::string object(const std::string& text) {
  return R"({"log":")" + text + R"(","stream":"stdout","time":"t"})" + "\n";
}

UniqueFd open_file(const std::string& path, int flags) {
  return UniqueFd(::open(path.c_str(), flags | O_CLOEXEC, 0600));
}

TEST(JsonLog, PrintsPiecesOfALineWithoutAGap) {
  const LogText text = log_text(object("ab") + object("cd\\n") + object("e\\n"));
  EXPECT_EQ(text.text, "abcd\ne\n");
  EXPECT_EQ(text.torn, 0U);
}

TEST(JsonLog, CountsWhatIsTorn) {
  const LogText text = log_text(object("a\\n") + "{\"log\":\n" + object("b\\n") + R"({"log":"c)");
  EXPECT_EQ(text.text, "a\nb\n");
  EXPECT_EQ(text.torn, 8U + 9U);
}

TEST(JsonLog, WholeLengthEndsAtTheLastNewline) {
  const TempDirectory dir;
  const std::string whole = object("a\\n") + object("b\\n");
  for (const std::string& tail : {std::string(), std::string(R"({"log":"to)"), std::string(200000, 'x')}) {
    write_text(dir / "log", whole + tail);
    const auto length = whole_log_length(open_file(dir / "log", O_RDONLY).get());
    ASSERT_TRUE(length.has_value());
    EXPECT_EQ(*length, whole.size()) << tail.size();
  }
  write_text(dir / "log", "no newline");
  EXPECT_EQ(*whole_log_length(open_file(dir / "log", O_RDONLY).get()), 0U);
}

TEST(JsonLog, AppendsExactlyTheRangeAfterWhatIsThere) {
  const TempDirectory dir;
  std::string content;
  for (int i = 0; i < 5000; ++i) {
    content += object(std::to_string(i) + "\\n");
  }
  const std::size_t first = object("0\\n").size();
  write_text(dir / "source", content + "{\"torn");
  write_text(dir / "destination", object("before\\n"));
  const UniqueFd source = open_file(dir / "source", O_RDONLY);
  const UniqueFd destination = open_file(dir / "destination", O_WRONLY | O_APPEND);
  const auto end = whole_log_length(source.get());
  ASSERT_TRUE(end.has_value());
  ASSERT_TRUE(append_log(source.get(), first, *end, destination.get()).has_value());
  EXPECT_EQ(read_text(dir / "destination"), object("before\\n") + content.substr(first));
}

TEST(JsonLog, RefusesARangeBeyondTheEnd) {
  const TempDirectory dir;
  write_text(dir / "source", object("a\\n"));
  const UniqueFd source = open_file(dir / "source", O_RDONLY);
  const UniqueFd destination = open_file(dir / "destination", O_WRONLY | O_APPEND | O_CREAT);
  const auto done = append_log(source.get(), 0, 1000, destination.get());
  ASSERT_FALSE(done.has_value());
  EXPECT_EQ(done.error().kind, Kind::corrupt);
}

TEST(JsonLog, ListsRotatedFilesOldestFirst) {
  const TempDirectory dir;
  for (const char* name : {"log", "log.1", "log.2.gz", "log.4"}) {
    write_text(dir / name, "x");
  }
  const auto files = log_files(dir / "log");
  ASSERT_TRUE(files.has_value());
  EXPECT_THAT(*files, testing::ElementsAre(dir / "log.2.gz", dir / "log.1", dir / "log"));
}

TEST(JsonLog, RefusesLinesThatAreNoLogObjects) {
  for (const char* line : {"", "{", "[]", "{}", R"({"log":1})"}) {
    EXPECT_FALSE(parse_log_line(line).has_value()) << line;
  }
  EXPECT_TRUE(can_continue_log("json-file"));
  EXPECT_FALSE(can_continue_log("journald"));
}

}  // namespace
}  // namespace ferry::container

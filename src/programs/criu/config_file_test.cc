#include "programs/criu/config_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "programs/criu/command_line.h"

namespace ferry::criu {
namespace {

using testing::HasSubstr;

class ConfigFiles : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = testing::TempDir() + "/ferry-config-XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    directory_ = name;
    ::setenv("HOME", name.c_str(), 1);
    ::unsetenv("CRIU_CONFIG_FILE");
  }
  void TearDown() override {
    std::filesystem::remove_all(directory_);
    ::unsetenv("CRIU_CONFIG_FILE");
  }
  std::string write(const std::string& name, const std::string& text) {
    const auto path = directory_ / name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text;
    return path;
  }
  std::filesystem::path directory_;
};

TEST(ConfigSyntax, TakesOneOptionALine) {
  const auto lines =
      parse_config(
          "# a comment\n\n  tcp-established # why\nghost-limit 10M\n\troot \"/a b\\\"c\" # x\nlog-file dump.log")
          .value();
  ASSERT_EQ(lines.size(), 4U);
  EXPECT_EQ(lines[0].option, "tcp-established");
  EXPECT_FALSE(lines[0].has_value);
  EXPECT_EQ(lines[1].value, "10M");
  EXPECT_EQ(lines[2].value, "/a b\"c");
  EXPECT_EQ(lines[2].number, 5);
  EXPECT_EQ(lines[3].value, "dump.log");
}

TEST(ConfigSyntax, NamesTheLineThatIsBroken) {
  EXPECT_THAT(parse_config("shell-job\nroot \"/a").error().message(), HasSubstr("line 2"));
  EXPECT_THAT(parse_config("root /a /b").error().message(), HasSubstr("more than one value"));
}

TEST_F(ConfigFiles, AFileThatIsNotThereIsNone) {
  Settings settings;
  EXPECT_TRUE(apply_config_file(settings, directory_ / "none.conf").has_value());
}

TEST_F(ConfigFiles, UnknownAndRefusedOptionsAreErrorsWithFileAndLine) {
  Settings settings;
  const auto unknown = apply_config_file(settings, write("a.conf", "shell-job\nno-such-thing\n"));
  ASSERT_FALSE(unknown.has_value());
  EXPECT_THAT(unknown.error().message(), testing::AllOf(HasSubstr("a.conf, line 2"), HasSubstr("no-such-thing")));
  const auto refused = apply_config_file(settings, write("b.conf", "stream\n"));
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().kind, Kind::unsupported);
  EXPECT_THAT(refused.error().message(), HasSubstr("--stream"));
  EXPECT_FALSE(apply_config_file(settings, write("c.conf", "ghost-limit\n")).has_value());
  EXPECT_FALSE(apply_config_file(settings, write("d.conf", "shell-job yes\n")).has_value());
}

TEST_F(ConfigFiles, LaterSourcesWin) {
  write(".criu/default.conf", "ghost-limit 1K\nlog-file home.log\nwork-dir /home-work\nshell-job\ntcp-established\n");
  ::setenv("CRIU_CONFIG_FILE", write("env.conf", "log-file env.log\nwork-dir /env-work\nno-shell-job\n").c_str(), 1);
  const std::string extra = write("extra.conf", "work-dir /extra-work\nroot /extra\n");
  const auto run =
      parse_command_line({"criu", "dump", "-t", "1", "--config", extra, "--root", "/line", "--no-tcp-established"});
  ASSERT_TRUE(run.has_value()) << run.error().message();
  EXPECT_EQ(run->settings.dump.ghost_limit, 1024U);
  EXPECT_EQ(run->settings.log_file, "env.log");
  EXPECT_EQ(run->settings.work_dir, "/extra-work");
  EXPECT_EQ(run->settings.common.root, "/line");
  EXPECT_FALSE(run->settings.common.shell_job);
  EXPECT_FALSE(run->settings.common.tcp_established);
}

TEST_F(ConfigFiles, DefaultsCanBeLeftOut) {
  write(".criu/default.conf", "log-file home.log\n");
  const auto run = parse_command_line({"criu", "dump", "-t", "1", "--no-default-config"});
  ASSERT_TRUE(run.has_value());
  EXPECT_EQ(run->settings.log_file, "");
}

}  // namespace
}  // namespace ferry::criu

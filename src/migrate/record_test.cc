#include "migrate/record.h"

#include <gtest/gtest.h>

#include "container/temp_directory.h"
#include "migrate/hello.h"
#include "migrate/progress.h"
#include "migrate/remote_shell.h"

namespace ferry::migrate {
namespace {

using container::TempDirectory;

const std::string kMove = "0123456789abcdef0123456789abcdef";

TEST(Decision, IsMadeOnce) {
  const TempDirectory directory;
  EXPECT_EQ(*decision_of(kMove, directory.path()), std::nullopt);
  EXPECT_EQ(*decide(kMove, Decision::refused, directory.path()), Decision::refused);
  EXPECT_EQ(*decide(kMove, Decision::taken, directory.path()), Decision::refused);
  EXPECT_EQ(*decision_of(kMove, directory.path()), Decision::refused);
}

TEST(Decision, LeavesNothingBesideItself) {
  const TempDirectory directory;
  ASSERT_TRUE(decide(kMove, Decision::taken, directory.path()));
  ASSERT_TRUE(decide(kMove, Decision::taken, directory.path()));
  int files = 0;
  for ([[maybe_unused]] const auto& file : std::filesystem::directory_iterator(directory.path())) {
    ++files;
  }
  EXPECT_EQ(files, 1);
  forget_decision(kMove, directory.path());
  EXPECT_TRUE(std::filesystem::is_empty(directory.path()));
}

TEST(Decision, DamagedIsNoDecision) {
  const TempDirectory directory;
  container::write_text(directory / (kMove + ".decided"), "tak");
  EXPECT_EQ(decision_of(kMove, directory.path()).error().kind, Kind::corrupt);
  EXPECT_FALSE(decide(kMove, Decision::taken, directory.path()));
}

TEST(MoveId, IsNoPath) {
  EXPECT_TRUE(check_move_id(kMove));
  EXPECT_FALSE(check_move_id("../../../etc/passwd0123456789abc"));
  EXPECT_FALSE(check_move_id(""));
  EXPECT_FALSE(decide("../x", Decision::taken));
}

TEST(GivenRecord, IsFoundAgain) {
  const TempDirectory directory;
  const GivenRecord record{.move = kMove,
                           .container_id = "c1",
                           .container_name = "looper",
                           .destination = "h2",
                           .rsh = "ssh -p 22",
                           .docker_host = "unix:///run/docker.sock",
                           .freeze_cgroup = "/sys/fs/cgroup/freezer/docker/c1",
                           .restart_policy = "on-failure",
                           .restart_retries = 3,
                           .keep_source = true};
  ASSERT_TRUE(write_given(record, directory.path()));
  EXPECT_FALSE(write_given(record, directory.path()));
  EXPECT_EQ(*given_moves(directory.path()), std::vector<std::string>{kMove});
  const auto read = read_given(kMove, directory.path());
  ASSERT_TRUE(read);
  EXPECT_EQ(encode_given(*read), encode_given(record));
  forget_given(kMove, directory.path());
  EXPECT_EQ(read_given(kMove, directory.path()).error().kind, Kind::gone);
}

TEST(GivenRecord, RefusesDamage) {
  for (const char* text : {"", "{}", "[]", R"({"version":2})", R"({"version":1,"move":7})"}) {
    EXPECT_EQ(decode_given(text).error().kind, Kind::corrupt) << text;
  }
}

TEST(RemoteShellCommand, IsSplitAsAShellWould) {
  EXPECT_EQ(*split_words("ssh"), std::vector<std::string>{"ssh"});
  EXPECT_EQ(*split_words(R"(  ssh -o "User Known=x y" 'a b'c \d "" )"),
            (std::vector<std::string>{"ssh", "-o", "User Known=x y", "a bc", "d", ""}));
  EXPECT_FALSE(split_words("   "));
  EXPECT_FALSE(split_words("ssh 'open"));
  EXPECT_FALSE(split_words("ssh \\"));
}

TEST(RemoteShellDestination, IsNoOption) { EXPECT_FALSE(RemoteShell::start("ssh", "-oProxyCommand=x", {})); }

TEST(HostObstacles, NameWhatTheDestinationLacks) {
  const HostFacts old{
      .version = {}, .name = {}, .kernel = {}, .architecture = "x86_64", .cpu_features = {"avx", "sse2"}};
  HostFacts fresh = old;
  fresh.cpu_features.insert("avx512f");
  EXPECT_TRUE(host_obstacles(old, fresh).empty());
  const auto obstacles = host_obstacles(fresh, old);
  ASSERT_EQ(obstacles.size(), 1U);
  EXPECT_NE(obstacles.front().find("avx512f"), std::string::npos);
  HostFacts other = old;
  other.architecture = "aarch64";
  EXPECT_EQ(host_obstacles(old, other).size(), 1U);
}

TEST(ProgramFeatures, LeavesOutWhatIsTheKernelsBusiness) {
  EXPECT_EQ(program_features("fpu vme sse4_2 avx2 rep_good nopl pti ibrs aes xsaveopt"),
            (std::set<std::string>{"aes", "avx2", "fpu", "sse4_2", "xsaveopt"}));
}

TEST(ByteText, ReadsWell) {
  EXPECT_EQ(byte_text(7), "7 bytes");
  EXPECT_EQ(byte_text(1536), "1.5 KiB");
  EXPECT_EQ(byte_text(5 << 20), "5.0 MiB");
}

}  // namespace
}  // namespace ferry::migrate

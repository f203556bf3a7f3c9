#include "container/checkpoint_dir.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "container/containerd.h"
#include "container/image_transfer.h"
#include "container/reference.h"
#include "container/run_program.h"
#include "container/temp_directory.h"

namespace ferry::container {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

Manifest manifest() {
  Manifest out;
  out.id = "i";
  out.created = "2026-01-01T00:00:00Z";
  out.container_id = "c";
  out.container_name = "web";
  out.image_name = "busybox";
  out.image_chain_id = "sha256:1";
  out.hostname = "h";
  out.mounts = {"/data"};
  out.layer_bytes = 512;
  return out;
}

TEST(Manifest, SurvivesTheFile) {
  const auto read = decode_manifest(encode_manifest(manifest()));
  ASSERT_TRUE(read.has_value()) << read.error().message();
  EXPECT_EQ(encode_manifest(*read), encode_manifest(manifest()));
}

TEST(Manifest, RefusesOtherVersionsAndHoles) {
  EXPECT_EQ(decode_manifest(R"({"version":2})").error().kind, Kind::unsupported);
  EXPECT_EQ(decode_manifest(R"({"version":1})").error().kind, Kind::corrupt);
  const std::string whole = encode_manifest(manifest());
  for (std::size_t size = 0; size < whole.size() - 2; ++size) {
    EXPECT_FALSE(decode_manifest(whole.substr(0, size)).has_value()) << size;
  }
}

TEST(Restore, FitsIntoAContainerOfTheSameMake) {
  Manifest target = manifest();
  target.container_id = "other";
  target.hostname = "clone";
  target.network_mode = "lan";
  EXPECT_THAT(restore_obstacles(manifest(), target), IsEmpty());
}

TEST(Restore, NamesWhatDoesNotFit) {
  Manifest target = manifest();
  target.image_chain_id = "sha256:2";
  target.tty = true;
  target.read_only = true;
  target.network_mode = "host";
  target.ipc_mode = "host";
  target.mounts = {"/else"};
  const auto obstacles = restore_obstacles(manifest(), target);
  for (const char* word : {"image", "terminal", "read-only", "--network", "--ipc", "/data", "/else"}) {
    EXPECT_THAT(obstacles, Contains(HasSubstr(word)));
  }
}

TEST(CheckpointName, IsNeverAPath) {
  EXPECT_TRUE(check_checkpoint_name("cp-1.a_b").has_value());
  for (const char* name : {"", "a", "..", "a/b", "-cp", ".cp", "c p"}) {
    EXPECT_FALSE(check_checkpoint_name(name).has_value()) << name;
  }
}

TEST(CheckpointDirectory, ListsAndRemovesOnlyCheckpoints) {
  const TempDirectory dir;
  for (const char* name : {"ours", "dockers", "stranger", ".ferry-draft"}) {
    ASSERT_EQ(::mkdir((dir / name).c_str(), 0700), 0);
  }
  for (const char* name : {"ours", "dockers", ".ferry-draft"}) {
    write_text(dir / std::string(name) + "/inventory.img", "x");
  }
  write_text(dir / "ours/ferry.json", encode_manifest(manifest()));
  const auto listed = list_checkpoints(dir.path());
  ASSERT_TRUE(listed.has_value()) << listed.error().message();
  ASSERT_EQ(listed->size(), 2U);
  EXPECT_EQ((*listed)[0].name, "dockers");
  EXPECT_FALSE((*listed)[0].manifest.has_value());
  EXPECT_EQ((*listed)[1].manifest->container_name, "web");
  EXPECT_EQ(remove_checkpoint_dir(dir.path(), "stranger").error().kind, Kind::invalid);
  EXPECT_EQ(remove_checkpoint_dir(dir.path(), "missing").error().kind, Kind::gone);
  EXPECT_TRUE(remove_checkpoint_dir(dir.path(), "ours").has_value());
  EXPECT_NE(::access((dir / "ours").c_str(), F_OK), 0);
  EXPECT_EQ(::access((dir / "stranger").c_str(), F_OK), 0);
  EXPECT_THAT(*list_checkpoints(dir / "nowhere"), IsEmpty());
}

TEST(Reference, HoldsThePlaceAndVanishes) {
  const TempDirectory dir;
  const std::string checkpoints = dir / "checkpoints";
  std::string first;
  {
    const auto made =
        Reference::make(checkpoints, {.id = {}, .images = "/images", .hostname = "clone", .close_tcp = true},
                        {"/dev/null", "pipe:[1]", "pipe:[2]"});
    ASSERT_TRUE(made.has_value()) << made.error().message();
    const std::string file = made->directory() + "/ferry-reference.json";
    struct stat info {};
    ASSERT_EQ(::stat(file.c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777U, 0600U);
    const auto content = decode_reference(read_text(file));
    ASSERT_TRUE(content.has_value());
    EXPECT_EQ(content->images, "/images");
    EXPECT_EQ(content->hostname, "clone");
    EXPECT_TRUE(content->close_tcp);
    EXPECT_EQ(read_text(made->directory() + "/descriptors.json"), R"(["/dev/null","pipe:[1]","pipe:[2]"])");
    first = content->id;
    const auto again =
        Reference::make(checkpoints, {.id = {}, .images = "/images", .hostname = std::nullopt}, {"a", "b", "c"});
    EXPECT_NE(again->name(), made->name());
  }
  EXPECT_EQ(first.size(), 32U);
  EXPECT_TRUE(std::filesystem::is_empty(checkpoints));
}

TEST(Reference, RefusesRelativePathsAndOtherVersions) {
  EXPECT_FALSE(decode_reference(R"({"version":1,"id":"a","images":"x"})").has_value());
  EXPECT_FALSE(decode_reference(R"({"version":2,"id":"a","images":"/x"})").has_value());
  EXPECT_FALSE(decode_reference(R"({"version":1,"images":"/x"})").has_value());
}

TEST(Containerd, ReadsEnvironmentsAndUnits) {
  EXPECT_EQ(path_of_environ(std::string_view("A=1\0XPATH=no\0PATH=/a:/b\0", 24)), "/a:/b");
  EXPECT_EQ(path_of_environ(std::string_view("A=1\0", 4)), "");
  EXPECT_EQ(unit_of_cgroup("1:name=systemd:/system.slice/containerd.service\n"), "containerd.service");
  EXPECT_EQ(unit_of_cgroup("0::/user.slice\n"), "");
}

TEST(RunProgram, ReturnsStatusAndText) {
  const auto done = run_program({"/bin/sh", "-c", "echo out; echo err >&2; exit 3"}, std::chrono::seconds(30));
  ASSERT_TRUE(done.has_value());
  EXPECT_EQ(done->status, 3);
  EXPECT_EQ(done->text, "out\nerr\n");
  EXPECT_EQ(run_program({"/nonexistent"}, std::chrono::seconds(1)).error().kind, Kind::gone);
  EXPECT_THAT(run_program({"/bin/sleep", "1000"}, std::chrono::milliseconds(50)).error().message(), HasSubstr("50 ms"));
}

TEST(ImageLayers, ChainIdsAreThoseOfTheSpecification) {
  EXPECT_THAT(chain_ids({}), IsEmpty());
  // sha256 of "sha256:a sha256:b", by sha256sum.
  EXPECT_THAT(chain_ids({"sha256:a", "sha256:b"}),
              ElementsAre("sha256:a", "sha256:970a948bffa8de94d6e22d747ba8c95030e6e546909f98f54e99a13005e173a8"));
}

TEST(ImageLayers, LeavesOutOnlyWhatTheOtherHas) {
  const std::vector<std::string> diffs{"A", "B", "A"};
  const auto chains = chain_ids(diffs);
  constexpr const char* kTold = R"([{"Layers":["1/layer.tar","2/layer.tar","3/layer.tar"]}])";
  // The third place is a link to the first one's content, so that has to go along.
  EXPECT_THAT(*entries_to_leave_out(kTold, diffs, {chains[0], chains[1]}), ElementsAre("2/layer.tar"));
  EXPECT_THAT(*entries_to_leave_out(kTold, diffs, {}), IsEmpty());
  EXPECT_EQ(entries_to_leave_out(kTold, diffs, {chains[0], chains[1], chains[2]})->size(), 3U);
  EXPECT_FALSE(entries_to_leave_out("[]", diffs, {}).has_value());
  EXPECT_FALSE(entries_to_leave_out(R"([{"Layers":["1"]}])", diffs, {}).has_value());
}

}  // namespace
}  // namespace ferry::container

#include "migrate/logbook.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <set>

#include "container/temp_directory.h"

namespace ferry::migrate {
namespace {

using container::TempDirectory;

const std::string kMove = "0123456789abcdef0123456789abcdef";

Entry some_entry() {
  Entry entry;
  entry.move = kMove;
  entry.role = Role::destination;
  entry.container_id = "c1";
  entry.container_name = "looper";
  entry.peer = "h1";
  entry.pid = 42;
  entry.start_time = 1ULL << 40;
  entry.began = 1700000000;
  entry.step = Step::rounds;
  entry.round = 3;
  entry.pages_left = 17;
  entry.restarts_suspended = true;
  entry.restart_policy = "on-failure";
  entry.restart_retries = 5;
  entry.freeze_cgroup = "/sys/fs/cgroup/freezer/docker/c1";
  entry.outcome = Outcome::moved;
  entry.reason = "said \"so\"";
  return entry;
}

TEST(Logbook, FindsAnEntryAgain) {
  const TempDirectory directory;
  const Entry entry = some_entry();
  ASSERT_TRUE(save_entry(entry, true, directory.path()));
  const auto found = read_entry(kMove, Role::destination, directory.path());
  ASSERT_TRUE(found);
  EXPECT_EQ(encode_entry(*found), encode_entry(entry));
  EXPECT_EQ(found->outcome, Outcome::moved);
  EXPECT_EQ(read_entry(kMove, Role::source, directory.path()).error().kind, Kind::gone);
}

TEST(Logbook, KeepsTheTwoSidesOfAMoveApart) {
  const TempDirectory directory;
  Entry entry = some_entry();
  ASSERT_TRUE(save_entry(entry, false, directory.path()));
  entry.role = Role::source;
  ASSERT_TRUE(save_entry(entry, false, directory.path()));
  const auto all = entries(directory.path());
  ASSERT_TRUE(all);
  ASSERT_EQ(all->size(), 2U);
  EXPECT_NE(all->front().role, all->back().role);
}

TEST(Logbook, PassesOverWhatIsDamaged) {
  const TempDirectory directory;
  ASSERT_TRUE(save_entry(some_entry(), false, directory.path()));
  const std::string whole = encode_entry(some_entry());
  for (std::size_t length = 0; length + 1 < whole.size(); length += 7) {
    EXPECT_FALSE(decode_entry(whole.substr(0, length))) << length;
  }
  container::write_text(directory / ("f" + kMove.substr(1) + ".source"), whole.substr(0, 40));
  const auto all = entries(directory.path());
  ASSERT_TRUE(all);
  EXPECT_EQ(all->size(), 1U);
}

TEST(Logbook, ForgetsOnlyWhatEndedLongAgo) {
  const TempDirectory directory;
  Entry running = some_entry();
  ASSERT_TRUE(save_entry(running, false, directory.path()));
  Entry old = some_entry();
  old.move = "f" + kMove.substr(1);
  old.ended = old.began + 1;
  ASSERT_TRUE(save_entry(old, false, directory.path()));
  forget_old_entries(directory.path());
  const auto all = entries(directory.path());
  ASSERT_TRUE(all);
  ASSERT_EQ(all->size(), 1U);
  EXPECT_EQ(all->front().move, kMove);
}

TEST(Logbook, TellsALivingProcessFromAnotherWithItsNumber) {
  Entry entry = some_entry();
  entry.pid = ::getpid();
  EXPECT_FALSE(is_at_work(entry)) << "it began at another time";
  entry.pid = 0;
  EXPECT_FALSE(is_at_work(entry));
}

TEST(Steps, AreNamedAndInTheirPlaces) {
  std::set<std::string_view> names;
  for (std::size_t i = 0; i < kSteps.size(); ++i) {
    EXPECT_EQ(static_cast<std::size_t>(kSteps[i].step), i);
    EXPECT_TRUE(kSteps[i].source || kSteps[i].destination);
    EXPECT_TRUE(names.insert(kSteps[i].name).second) << kSteps[i].name;
    EXPECT_EQ(step_named(kSteps[i].name), kSteps[i].step);
  }
  EXPECT_EQ(step_named("nowhere"), std::nullopt);
}

}  // namespace
}  // namespace ferry::migrate

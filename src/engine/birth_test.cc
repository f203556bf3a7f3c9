#include "engine/birth.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

namespace ferry::engine {
namespace {

using What = BirthStep::What;

// What the kernel does with parents, sessions and groups.
struct World {
  struct Process {
    std::uint32_t parent = 0, pgid = 0, sid = 0;
    int exit_signal = 17;
    bool reaper = false, dead = false, gone = false;
  };
  std::map<std::uint32_t, Process> all;

  bool group_exists(std::uint32_t pgid, std::uint32_t sid) const {
    for (const auto& [pid, p] : all) {
      if (!p.gone && p.pgid == pgid && p.sid == sid) {
        return true;
      }
    }
    return false;
  }
  bool number_in_use(std::uint32_t number) const {
    for (const auto& [pid, p] : all) {
      if (!p.gone && (pid == number || p.pgid == number || p.sid == number)) {
        return true;
      }
    }
    return false;
  }
  bool clone(std::uint32_t from, std::uint32_t pid, bool sibling = false) {
    // A number that is only a session's or group's any more can be chosen by nobody.
    if (all.at(from).dead || number_in_use(pid)) {
      return false;
    }
    const Process& parent = all.at(from);
    all[pid] = {sibling ? parent.parent : from, parent.pgid, parent.sid, sibling ? parent.exit_signal : 17};
    return true;
  }
  bool setsid(std::uint32_t pid) {
    for (const auto& [other, p] : all) {
      if (!p.gone && p.pgid == pid) {
        return false;
      }
    }
    all.at(pid).sid = all.at(pid).pgid = pid;
    return true;
  }
  bool setpgid(std::uint32_t pid, std::uint32_t pgid) {
    Process& p = all.at(pid);
    if (p.sid == pid || pgid == 0 || (pgid != pid && !group_exists(pgid, p.sid))) {
      return false;
    }
    p.pgid = pgid;
    return true;
  }
  void exit(std::uint32_t pid, bool reaped) {
    all.at(pid).dead = true;
    all.at(pid).gone = reaped;
    std::uint32_t heir = all.at(pid).parent;
    while (all.at(heir).parent != 0 && (all.at(heir).dead || !all.at(heir).reaper)) {
      heir = all.at(heir).parent;
    }
    for (auto& [child, p] : all) {
      if (p.parent == pid) {
        p.parent = heir;
        p.exit_signal = 17;
      }
    }
  }
};

void list_below(const World& world, std::uint32_t pid, std::optional<std::size_t> parent, std::vector<Person>& out) {
  const World::Process& p = world.all.at(pid);
  out.push_back({pid, parent, p.pgid, p.sid, p.exit_signal});
  const std::size_t me = out.size() - 1;
  for (const auto& [child, c] : world.all) {
    if (c.parent == pid && !c.gone && child != 1) {
      list_below(world, child, me, out);
    }
  }
}
std::vector<Person> list(const World& world) {
  std::vector<Person> out;
  list_below(world, 1, std::nullopt, out);
  return out;
}

// Carries a plan out; an empty text if the tree is as wanted.
std::string carry_out(const std::vector<Person>& tree, const BirthPlan& plan) {
  World world;
  constexpr std::uint32_t kOuter = 999'999;
  world.all[tree.front().pid] = {0, kOuter, kOuter, 17};
  std::uint32_t spare = 500'000;
  std::map<std::size_t, std::uint32_t> helpers;
  const auto number = [&](std::size_t i) -> std::uint32_t {
    if (i < plan.persons) {
      return tree[i].pid;
    }
    const std::uint32_t wanted = plan.helpers[i - plan.persons];
    return helpers.emplace(i, wanted != 0 ? wanted : ++spare).first->second;
  };
  for (const BirthStep& s : plan.steps) {
    const std::uint32_t who = number(s.who), whom = number(s.whom);
    bool good = true;
    switch (s.what) {
      case What::child:
        good = world.clone(who, whom);
        break;
      case What::sibling:
        good = world.clone(who, whom, true);
        break;
      case What::lead:
        good = world.setsid(who);
        break;
      case What::group:
        good = world.setpgid(who, s.group != 0 ? s.group : kOuter);
        break;
      case What::reaper_on:
        world.all.at(who).reaper = true;
        break;
      case What::reaper_off:
        world.all.at(who).reaper = false;
        break;
      case What::end:
        good = world.all.at(whom).parent == who;
        world.exit(whom, true);
        break;
    }
    if (!good) {
      return "step " + std::to_string(&s - plan.steps.data()) + " fails: " + std::to_string(static_cast<int>(s.what)) +
             " by " + std::to_string(who) + " of " + std::to_string(whom) + " group " + std::to_string(s.group);
    }
  }
  for (const Person& p : tree) {
    const auto found = world.all.find(p.pid);
    if (found == world.all.end()) {
      return "pid " + std::to_string(p.pid) + " was not made";
    }
    const World::Process& is = found->second;
    const std::uint32_t parent = p.parent ? tree[*p.parent].pid : 0;
    const auto outer = [&](std::uint32_t have, std::uint32_t want) {
      return have == want || (have == kOuter && (want == 0 || want == tree.front().sid || want == tree.front().pgid));
    };
    if (is.parent != parent || !outer(is.sid, p.sid) || !outer(is.pgid, p.pgid)) {
      return "pid " + std::to_string(p.pid) + " has parent " + std::to_string(is.parent) + " group " +
             std::to_string(is.pgid) + " session " + std::to_string(is.sid);
    }
  }
  for (const auto& [pid, p] : world.all) {
    if (!p.gone && std::none_of(tree.begin(), tree.end(), [&](const Person& t) { return t.pid == pid; })) {
      return "helper " + std::to_string(pid) + " is left";
    }
  }
  return "";
}

std::string describe(const std::vector<Person>& tree) {
  std::string out;
  for (const Person& p : tree) {
    out += "\npid " + std::to_string(p.pid) + " parent " + std::to_string(p.parent ? tree[*p.parent].pid : 0) +
           " group " + std::to_string(p.pgid) + " session " + std::to_string(p.sid);
  }
  return out;
}

std::string outcome(const std::vector<Person>& tree) {
  const auto plan = plan_births(tree);
  return plan.has_value() ? carry_out(tree, *plan) : plan.error().message();
}

TEST(Births, ADaemonWhoseSessionLeaderIsDead) {
  EXPECT_EQ(outcome({{1, {}, 1, 1}, {7, 0, 6, 6}, {8, 1, 6, 6}, {9, 0, 6, 6}}), "");
}

TEST(Births, ChildrenFromBeforeTheParentsSetsid) {
  EXPECT_EQ(outcome({{1, {}, 1, 1}, {2, 0, 2, 2}, {3, 1, 1, 1}, {4, 1, 2, 2}, {5, 1, 5, 5}, {6, 4, 1, 1}}), "");
}

TEST(Births, AnOrphanInTheSessionOfASibling) {
  EXPECT_EQ(outcome({{1, {}, 1, 1}, {2, 0, 2, 2}, {4, 0, 2, 2}, {5, 0, 4, 2}}), "");
}

TEST(Births, AnOrphanInTheSessionOfANephew) {
  EXPECT_EQ(outcome({{1, {}, 1, 1}, {2, 0, 1, 1}, {3, 1, 3, 3}, {4, 0, 3, 3}}), "");
}

TEST(Births, GroupsWhoseLeaderIsDeadOrElsewhere) {
  EXPECT_EQ(outcome({{1, {}, 1, 1}, {2, 0, 9, 1}, {3, 0, 9, 1}, {4, 0, 3, 1}, {5, 0, 4, 1}}), "");
}

TEST(Births, TheRootOfAShellJob) {
  EXPECT_EQ(
      outcome({{50, {}, 50, 20}, {51, 0, 50, 20}, {52, 0, 52, 20}, {53, 0, 53, 53}, {54, 3, 50, 20}, {55, 0, 49, 20}}),
      "");
  EXPECT_EQ(outcome({{50, {}, 33, 20}, {51, 0, 33, 20}}), "");
}

TEST(Births, ADaemonOfTheShellsSession) {
  // The root left the shell's session; its older child stayed, which the image says as session 0.
  EXPECT_EQ(outcome({{50, {}, 50, 50}, {51, 0, 0, 0}, {52, 0, 50, 50}}), "");
}

TEST(Births, SaysWhoseSessionNothingExplains) {
  const auto plan = plan_births({{1, {}, 1, 1}, {2, 0, 2, 2}, {3, 0, 1, 1}, {4, 2, 2, 2}});
  ASSERT_FALSE(plan.has_value());
  EXPECT_EQ(plan.error().kind, Kind::unsupported);
  EXPECT_NE(plan.error().message().find("pid 4"), std::string::npos) << plan.error().message();
}

TEST(Births, DaemonsByTheThousandTakeNoTime) {
  std::vector<Person> tree{{1, {}, 1, 1}};
  for (std::uint32_t i = 0; i < 3000; ++i) {
    tree.push_back({3 * i + 10, 0, 3 * i + 9, 3 * i + 9});
  }
  EXPECT_EQ(outcome(tree), "");
}

// Whatever processes can do to each other, a plan brings about again.
TEST(Births, AnyHistoryCanBeRepeated) {
  for (unsigned seed = 0; seed < 3000; ++seed) {
    std::mt19937 random(seed);
    World world;
    const bool shell_job = seed % 5 == 0;
    world.all[1] =
        shell_job ? World::Process{0, seed % 2 == 0 ? 90'000U : 1U, 90'000, 17} : World::Process{0, 1, 1, 17};
    std::uint32_t next = 2;
    const auto someone = [&] {
      for (;;) {
        const auto at = std::next(world.all.begin(), static_cast<long>(random() % world.all.size()));
        if (!at->second.dead) {
          return at->first;
        }
      }
    };
    const auto events = static_cast<unsigned>(5 + random() % 60);
    for (unsigned event = 0; event < events; ++event) {
      const std::uint32_t who = someone();
      switch (random() % 8) {
        case 0:
        case 1:
        case 2:
          (void)world.clone(who, next++);
          break;
        case 3:
          if (who != 1) {
            (void)world.setsid(who);
          }
          break;
        case 4:
          if (who != 1) {
            (void)world.setpgid(who, random() % 2 == 0 ? who : world.all.at(someone()).pgid);
          }
          break;
        case 5:
          if (who != 1) {
            world.exit(who, random() % 3 != 0);
          }
          break;
        case 6:
          world.all.at(who).reaper = random() % 3 == 0;
          break;
        case 7:
          for (auto& [pid, p] : world.all) {
            if (p.dead && p.parent == who) {
              p.gone = true;
            }
          }
          break;
      }
    }
    const auto tree = list(world);
    ASSERT_EQ(outcome(tree), "") << "history " << seed << ": " << describe(tree);
  }
}

}  // namespace
}  // namespace ferry::engine

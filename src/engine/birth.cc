#include "engine/birth.h"

#include <algorithm>
#include <map>
#include <set>

namespace ferry::engine {
namespace {

using What = BirthStep::What;
constexpr int kSigchld = 17;
constexpr std::uint32_t kOutside = 0;  // session or group of whoever restores the tree

class Planner {
 public:
  explicit Planner(const std::vector<Person>& tree) : tree_(tree) {}

  Result<BirthPlan> run() {
    out_.persons = tree_.size();
    for (std::size_t i = 0; i < tree_.size(); ++i) {
      by_pid_.emplace(tree_[i].pid, i);
    }
    children_.resize(tree_.size());
    const Person& root = tree_.front();
    const bool root_leads = root.sid == root.pid;
    for (std::size_t i = 0; i < tree_.size(); ++i) {
      const Person& p = tree_[i];
      if (p.parent) {
        children_[*p.parent].push_back(i);
      }
      // The root's own session and group are from outside, if their leader is not in the tree.
      const bool outer_session = p.sid == 0 || (!root_leads && p.sid == root.sid && !by_pid_.contains(p.sid));
      const bool outer_group = p.pgid == 0 || (!root_leads && p.pgid == root.pgid && !by_pid_.contains(p.pgid));
      nodes_.push_back({.parent = p.parent,
                        .final_session = outer_session ? kOutside : p.sid,
                        .final_group = outer_group ? kOutside : p.pgid,
                        .exit_signal = p.exit_signal});
    }
    find_birth_sessions();
    nodes_.front().made = true;
    grow(0);
    FERRY_CHECK(hand_over_orphans());
    FERRY_CHECK(make_groups());
    // Last, because members of a group keep the number of its leader, but nobody else does.
    for (std::size_t i = tree_.size(); i < nodes_.size(); ++i) {
      end(i);
    }
    return std::move(out_);
  }

 private:
  struct Node {
    std::optional<std::size_t> parent;
    std::uint32_t final_session = kOutside, final_group = kOutside;
    int exit_signal = kSigchld;
    std::uint32_t birth_session = kOutside;
    std::uint32_t session = kOutside;  // during the plan
    bool made = false;
    bool ended = false;
  };

  [[nodiscard]] std::uint32_t pid(std::size_t i) const {
    return i < tree_.size() ? tree_[i].pid : out_.helpers[i - tree_.size()];
  }
  [[nodiscard]] bool leads(std::size_t i) const { return nodes_[i].final_session == pid(i); }
  // Whether `i` is a descendant of `above`.
  [[nodiscard]] bool is_below(std::size_t i, std::size_t above) const {
    for (auto at = nodes_[i].parent; at; at = nodes_[*at].parent) {
      if (*at == above) {
        return true;
      }
    }
    return false;
  }
  [[nodiscard]] bool leader_is_below(std::uint32_t session, std::size_t above) const {
    const auto leader = by_pid_.find(session);
    return session != kOutside && leader != by_pid_.end() && is_below(leader->second, above);
  }
  // Whether only the past of `i`, which leads a session of its own, explains a child of it in `session`.
  [[nodiscard]] bool has_to_come_from(std::size_t i, std::uint32_t session) const {
    if (session == nodes_[i].final_session || leader_is_below(session, i)) {
      return false;
    }
    if (session == kOutside || by_pid_.contains(session)) {
      return true;
    }
    // Its leader is dead, and may have lived below `i` unless others of it are elsewhere.
    for (std::size_t other = 0; other < tree_.size(); ++other) {
      if (nodes_[other].final_session == session && !is_below(other, i)) {
        return true;
      }
    }
    return false;
  }

  void step(What what, std::size_t who, std::size_t whom = 0, std::uint32_t group = 0) {
    out_.steps.push_back({what, who, whom, group});
  }

  // A leader was born into another session than its own; its older children tell which.
  void find_birth_sessions() {
    std::vector<std::optional<std::uint32_t>> wanted(nodes_.size());
    for (std::size_t i = nodes_.size(); i-- > 0;) {
      if (!leads(i)) {
        nodes_[i].birth_session = nodes_[i].final_session;
      }
      // Children come after their parents, so all of them have said by now where they were born.
      if (!nodes_[i].parent) {
        continue;
      }
      const std::size_t parent = *nodes_[i].parent;
      const std::optional<std::uint32_t> mine = leads(i) ? wanted[i] : nodes_[i].final_session;
      if (mine && leads(parent) && !wanted[parent] && has_to_come_from(parent, *mine)) {
        wanted[parent] = mine;
      }
    }
    for (std::size_t i = 0; i < nodes_.size(); ++i) {
      if (leads(i)) {
        const auto parent = nodes_[i].parent;
        nodes_[i].birth_session = wanted[i] ? *wanted[i] : parent ? nodes_[*parent].final_session : kOutside;
      }
    }
  }

  void make(What how, std::size_t who, std::size_t whom) {
    step(how, who, whom);
    nodes_[whom].made = true;
    nodes_[whom].session = nodes_[who].session;
    populated_.insert(nodes_[whom].session);
  }

  // Everybody below `first` who was born by the parent that it still has.
  void grow(std::size_t first) {
    std::vector<std::size_t> todo{first};
    for (std::size_t at = 0; at < todo.size(); ++at) {
      const std::size_t i = todo[at];
      const auto bear = [&] {
        for (const std::size_t child : children_[i]) {
          if (!nodes_[child].made && nodes_[child].birth_session == nodes_[i].session) {
            make(What::child, i, child);
            todo.push_back(child);
          }
        }
      };
      if (leads(i)) {
        bear();
        lead(i);
      }
      bear();
    }
  }

  void lead(std::size_t i) {
    step(What::lead, i);
    nodes_[i].session = pid(i);
    populated_.insert(nodes_[i].session);
  }

  std::size_t new_helper(std::uint32_t number, std::size_t parent) {
    out_.helpers.push_back(number);
    nodes_.push_back({.parent = parent});
    make(What::child, parent, nodes_.size() - 1);
    return nodes_.size() - 1;
  }

  void end(std::size_t helper) {
    if (!nodes_[helper].ended) {
      step(What::end, *nodes_[helper].parent, helper);
      nodes_[helper].ended = true;
    }
  }

  // Somebody in `session` who can be in the way of becoming a child of `parent`: best a child itself.
  [[nodiscard]] std::optional<std::size_t> somebody_in(std::uint32_t session, std::size_t parent,
                                                       int exit_signal) const {
    std::optional<std::size_t> deeper;
    if (!populated_.contains(session)) {
      return deeper;
    }
    for (std::size_t i = 0; i < nodes_.size(); ++i) {
      const Node& n = nodes_[i];
      if (!n.made || n.ended || n.session != session || !is_below(i, parent)) {
        continue;
      }
      // clone(2), CLONE_PARENT: the new process has the exit signal of who made it.
      if (*n.parent == parent && n.exit_signal == exit_signal) {
        return i;
      }
      deeper = deeper ? deeper : i;
    }
    return deeper;
  }

  void adopt(std::size_t orphan, std::size_t from) {
    const std::size_t parent = *nodes_[orphan].parent;
    if (*nodes_[from].parent == parent && nodes_[from].exit_signal == nodes_[orphan].exit_signal) {
      make(What::sibling, from, orphan);
    } else {
      // Nobody else is a subreaper yet, so the orphan goes to the one that is meant (prctl(2),
      // PR_SET_CHILD_SUBREAPER).
      step(What::reaper_on, parent);
      const std::size_t between = new_helper(0, from);
      make(What::child, between, orphan);
      end(between);
      step(What::reaper_off, parent);
    }
    grow(orphan);
  }

  // Who is in a session that its parent never was in.
  Result<void> hand_over_orphans() {
    std::vector<std::size_t> left;
    for (std::size_t i = 0; i < tree_.size(); ++i) {
      if (!nodes_[i].made) {
        left.push_back(i);
      }
    }
    while (!left.empty()) {
      const std::size_t before = left.size();
      for (const std::size_t i : left) {
        if (!nodes_[i].made && nodes_[*nodes_[i].parent].made) {
          if (const auto from = somebody_in(nodes_[i].birth_session, *nodes_[i].parent, nodes_[i].exit_signal)) {
            adopt(i, *from);
          }
        }
      }
      std::erase_if(left, [&](std::size_t i) { return nodes_[i].made; });
      if (left.size() == before) {
        FERRY_CHECK(revive_a_leader(left));
      }
    }
    return {};
  }

  // Makes the helper for one session whose leader is dead.
  Result<void> revive_a_leader(const std::vector<std::size_t>& left) {
    std::optional<std::size_t> deepest;
    for (const std::size_t i : left) {
      const std::uint32_t session = nodes_[i].birth_session;
      if (!nodes_[*nodes_[i].parent].made || session == kOutside || by_pid_.contains(session)) {
        continue;
      }
      // Below the lowest of those who have to have its members: from there they can be handed upwards.
      if (!deepest ||
          (nodes_[*deepest].birth_session == session && is_below(*nodes_[i].parent, *nodes_[*deepest].parent))) {
        deepest = i;
      }
    }
    if (!deepest) {
      const Person& p = tree_[left.front()];
      return fail(
          Kind::unsupported,
          "pid {} is a child of pid {}, but in session {}, which neither its parent nor a descendant of that was in",
          p.pid, pid(*p.parent), p.sid);
    }
    const std::size_t orphan = *deepest;
    const std::uint32_t session = nodes_[orphan].birth_session;
    const bool already = std::find(out_.helpers.begin(), out_.helpers.end(), session) != out_.helpers.end();
    if (already) {
      return fail(Kind::unsupported,
                  "the members of session {}, whose leader is dead, are too far apart: pid {} is a child of pid {}",
                  session, pid(orphan), pid(*nodes_[orphan].parent));
    }
    const std::size_t leader = new_helper(session, *nodes_[orphan].parent);
    lead(leader);
    adopt(orphan, leader);
    return {};
  }

  // Everybody is born into the group of the session's leader.
  Result<void> make_groups() {
    std::map<std::uint32_t, bool> founded;  // group, whether it is there
    for (std::size_t i = 0; i < tree_.size(); ++i) {
      const std::uint32_t group = nodes_[i].final_group;
      if (group == nodes_[i].session) {
        continue;
      }
      if (group == kOutside) {
        return fail(Kind::unsupported,
                    "pid {} is in a process group from outside of the tree, but not in a session from there", pid(i));
      }
      founded.emplace(group, false);
    }
    for (auto& [group, there] : founded) {
      // A leader that is in another group by now founds its old one first.
      if (const auto leader = by_pid_.find(group); leader != by_pid_.end()) {
        step(What::group, leader->second, 0, group);
        there = true;
      }
    }
    std::vector<std::size_t> movers;  // leave the group they founded to others
    for (std::size_t i = 0; i < tree_.size(); ++i) {
      const std::uint32_t group = nodes_[i].final_group;
      if (founded.contains(pid(i))) {
        if (group != pid(i)) {
          movers.push_back(i);
        }
        continue;
      }
      if (group == nodes_[i].session) {
        continue;
      }
      if (!founded[group]) {
        step(What::group, new_helper(group, i), 0, group);
        founded[group] = true;
      }
      step(What::group, i, 0, group);
    }
    std::set<std::size_t> moved, moving;
    for (const std::size_t i : movers) {
      const std::uint32_t group = nodes_[i].final_group;
      if (group != nodes_[i].session && !founded[group]) {
        step(What::group, new_helper(group, i), 0, group);
        founded[group] = true;
      }
    }
    for (const std::size_t i : movers) {
      move(i, movers, moved, moving);
    }
    return {};
  }

  // Whoever moves into the group that `i` founded goes first, so that it is not empty in between.
  void move(std::size_t i, const std::vector<std::size_t>& movers, std::set<std::size_t>& moved,
            std::set<std::size_t>& moving) {
    if (moved.contains(i)) {
      return;
    }
    if (!moving.insert(i).second) {
      (void)new_helper(0, i);  // a circle: somebody stays in the group meanwhile
      return;
    }
    for (const std::size_t other : movers) {
      if (other != i && nodes_[other].final_group == pid(i)) {
        move(other, movers, moved, moving);
      }
    }
    step(What::group, i, 0, nodes_[i].final_group);
    moved.insert(i);
  }

  const std::vector<Person>& tree_;
  std::map<std::uint32_t, std::size_t> by_pid_;
  std::vector<std::vector<std::size_t>> children_;
  std::vector<Node> nodes_;            // the persons, then the helpers
  std::set<std::uint32_t> populated_;  // sessions that somebody made is or was in
  BirthPlan out_;
};

}  // namespace

Result<BirthPlan> plan_births(const std::vector<Person>& tree) { return Planner(tree).run(); }

}  // namespace ferry::engine

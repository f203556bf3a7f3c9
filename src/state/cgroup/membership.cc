#include "state/cgroup/membership.h"

#include <algorithm>

namespace ferry::state::cgroup {
namespace {

// "/a/b" for "/a/b/c" and "/a/b/d".
std::string common_directory(const std::string& a, const std::string& b) {
  std::size_t end = 0;  // of the common part, before a slash or at an end
  for (std::size_t i = 0;; ++i) {
    const bool a_ends = i == a.size() || a[i] == '/';
    const bool b_ends = i == b.size() || b[i] == '/';
    if (a_ends && b_ends) {
      end = i;
    }
    if (i == a.size() || i == b.size() || a[i] != b[i]) {
      break;
    }
  }
  return end == 0 ? "/" : a.substr(0, end);
}

bool below(const std::string& path, const std::string& directory) {
  return directory == "/" ||
         (path.starts_with(directory) && (path.size() == directory.size() || path[directory.size()] == '/'));
}

}  // namespace

Result<Membership> parse_membership(std::string_view text) {
  Membership out;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    const std::size_t first = line.find(':');
    const std::size_t second = first == std::string_view::npos ? first : line.find(':', first + 1);
    if (second == std::string_view::npos || second + 1 >= line.size() || line[second + 1] != '/') {
      return fail(Kind::corrupt, "a line of /proc/PID/cgroup cannot be read: {}", line);
    }
    std::string_view path = line.substr(second + 1);
    constexpr std::string_view kDeleted = " (deleted)";
    if (path.ends_with(kDeleted)) {
      path.remove_suffix(kDeleted.size());
    }
    out.emplace(line.substr(first + 1, second - first - 1), path);
  }
  return out;
}

bool names_controller(std::string_view hierarchy, std::string_view controller) {
  if (hierarchy == controller) {
    return true;
  }
  for (;;) {
    const std::size_t end = std::min(hierarchy.find(','), hierarchy.size());
    if (hierarchy.substr(0, end) == controller && !controller.empty()) {
      return true;
    }
    if (end == hierarchy.size()) {
      return false;
    }
    hierarchy.remove_prefix(end + 1);
  }
}

Remap::Remap(const pb::CgroupEntry& image, const std::vector<CgroupRoot>& roots) {
  std::map<std::string, std::string> common;
  for (const pb::CgSetEntry& set : image.sets()) {
    for (const pb::CgMemberEntry& member : set.ctls()) {
      const std::string here =
          member.cgns_prefix() != 0 ? member.path().substr(0, member.cgns_prefix()) : member.path();
      const auto [at, is_new] = common.emplace(member.name(), here);
      if (!is_new) {
        at->second = common_directory(at->second, here);
      }
    }
  }
  for (const auto& [hierarchy, from] : common) {
    const CgroupRoot* chosen = nullptr;
    for (const CgroupRoot& root : roots) {
      if (names_controller(hierarchy, root.controller)) {
        chosen = &root;
        break;
      }
      // Unless a later one names it.  runc says "" and means cgroup v2 alone, so a hierarchy in which the
      // tree stood at the root, with no group to replace, is left alone.
      if (root.controller.empty() && from != "/") {
        chosen = &root;
      }
    }
    if (chosen != nullptr) {
      rules_.emplace(hierarchy, Rule{from, chosen->path});
    }
  }
}

std::string Remap::path(const std::string& hierarchy, const std::string& path) const {
  const auto found = rules_.find(hierarchy);
  if (found == rules_.end()) {
    return path;
  }
  const auto& [from, to] = found->second;
  std::string rest = below(path, from) ? path.substr(from == "/" ? 0 : from.size()) : path;
  if (rest == "/") {
    rest.clear();
  }
  std::string out = (to == "/" ? "" : to) + rest;
  return out.empty() ? "/" : out;
}

}  // namespace ferry::state::cgroup

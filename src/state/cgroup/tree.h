// One cgroup hierarchy of this host, its directories and their property files.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"
#include "image/proto/cgroup.pb.h"
#include "state/mount/mountinfo.h"

namespace ferry::state::cgroup {

class Hierarchy {
 public:
  // `name` as in /proc/PID/cgroup.  A hierarchy that the host has not mounted where we see it is mounted for
  // us alone, attached nowhere.  `mounts`: our mountinfo.
  static Result<Hierarchy> open(const std::string& name, const std::vector<mount::Line>& mounts);
  static Result<Hierarchy> open(const std::string& name);
  static Result<Hierarchy> open_in(const std::string& yard, const std::string& name);

  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] bool is_v2() const { return name_.empty(); }
  [[nodiscard]] bool has(const std::string& path) const;
  // The directory of a group as a path, valid as long as the object.
  [[nodiscard]] std::string directory(const std::string& path) const;

  // A group with the properties that can be set again; `deep`: and all groups below it.
  // `more`: properties beside those that are known (--cgroup-props).
  Result<void> read(const std::string& path, bool deep, const std::vector<std::string>& more,
                    pb::CgroupDirEntry& out) const;
  // The groups below a group, as read() with `deep` has them.
  Result<void> read_below(const std::string& path, const std::vector<std::string>& more, pb::CgroupDirEntry& out) const;
  // The paths of the groups right below a group.
  Result<std::vector<std::string>> children(const std::string& path) const;
  // The file that names the threads of a group, one a line.
  Result<std::string> thread_list(const std::string& path) const;
  // Makes a group and those above it; those that it made.
  Result<std::vector<std::string>> make(const std::string& path) const;
  // Takes an empty group away; one that is not empty stays.
  void remove(const std::string& path) const;
  [[nodiscard]] Result<Hierarchy> duplicate() const;
  Result<void> set_properties(const std::string& path, const pb::CgroupDirEntry& entry, bool permissions) const;
  // Writes a task to cgroup.procs, or a single thread to tasks (v1) or cgroup.threads (v2).
  Result<void> put_process(const std::string& path, pid_t pid) const;
  Result<void> put_thread(const std::string& path, pid_t tid) const;

 private:
  Hierarchy(std::string name, UniqueFd root) : name_(std::move(name)), root_(std::move(root)) {}
  [[nodiscard]] std::string describe(const std::string& path) const;
  std::string name_;
  UniqueFd root_;
};

}  // namespace ferry::state::cgroup

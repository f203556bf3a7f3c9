// Restore: files whose names are gone, made again without leaving a name behind.
//
// All of a set are made at once, on first demand: each gets its name for a moment (so that /proc shows the
// same path again), is opened, and loses the name.  A file that has the name by now gets it back by the same
// exchange; directories that are gone as well exist for that moment.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"
#include "image/proto/remap.pb.h"
#include "state/proc_file/dead_process.h"
#include "state/restore.h"

namespace ferry::state::files {

class LostNames {
 public:
  LostNames() = default;
  LostNames(const LostNames&) = delete;
  LostNames& operator=(const LostNames&) = delete;

  // Opens the file of a REG entry, wherever it is, with the flags of the entry.
  Result<UniqueFd> open(RestoreContext& context, const pb::RegFileEntry& reg, int flags);
  // File ids that have to be opened while the processes they tell of are there; then these can go.
  Result<std::vector<std::uint32_t>> of_dead_processes(RestoreContext& context);
  Result<void> end_dead_processes() { return dead_.end(); }
  // The tree is restored: helper names of --link-remap go.
  Result<void> remove_helper_links();

 private:
  struct Object {
    std::uint32_t number = 0;                   // of the ghost, or file id of the helper name
    const pb::GhostFileEntry* ghost = nullptr;  // nullptr: there is a helper name
    std::string helper;                         // it
    std::vector<const pb::RegFileEntry*> files;
    Inside* inside = nullptr;  // where its first name is; names in other mount namespaces cannot be had again
  };
  // What exists for the moment, to be taken away again in reverse order.
  struct Made {
    std::string path;    // where it is
    std::string wanted;  // if something else is there: to be exchanged with it
    bool directory = false;
  };

  struct ToFill {
    std::uint32_t number;  // of the ghost
    std::shared_ptr<UniqueFd> file;
    std::string name;
  };

  Result<void> prepare(RestoreContext& context);
  Result<void> index(RestoreContext& context);
  // Those of one mount namespace.
  Result<void> make_all(const Inside* inside);
  Result<void> make_parents(const std::string& path);
  Result<void> make(const Object& object);
  static bool needs_its_name(const pb::RegFileEntry& reg, int made);
  Result<void> make_temporary(const Object& object);
  Result<void> take_away(const Made& made);

  bool prepared_ = false;
  std::map<std::uint32_t, Object> objects_;                   // ghosts by number, helpers by file id + 2^31
  std::map<std::uint32_t, std::shared_ptr<UniqueFd>> found_;  // by file id: O_PATH
  std::map<std::uint32_t, UniqueFd> first_;                   // by file id: opened while there was a name
  std::map<std::uint32_t, std::uint32_t> dead_pids_;          // by file id
  std::vector<Made> made_;
  std::vector<ToFill> to_fill_;
  proc_file::DeadProcesses dead_;
};

}  // namespace ferry::state::files

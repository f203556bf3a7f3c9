// Files that are open or mapped although their last name is gone: content in the images, made again
// and unlinked again on restore.
#pragma once

#include <map>
#include <string>

#include "state/file_kind.h"

namespace ferry::state::ghost {

// Adds the content of the file behind `ours` to the set and ties it to file `id` (remap-fpath).
// Errors: unsupported if it is larger than options.ghost_limit or no regular file or directory.
Result<void> collect(DumpContext& context, int ours, const struct stat& stat, std::uint32_t id,
                     const std::string& subject);

// The ghosts of a restore: each made once, at the path where its first user wants it, and unlinked when
// the object goes.
class Ghosts {
 public:
  Ghosts() = default;
  ~Ghosts();
  Ghosts(const Ghosts&) = delete;
  Ghosts& operator=(const Ghosts&) = delete;

  // The path to open instead of `path` for file `id`; `path` itself if no ghost belongs to the file.
  Result<std::string> path_for(RestoreContext& context, std::uint32_t id, const std::string& path);
  // Unlinks all that were made.
  Result<void> remove(RestoreContext& context);

 private:
  Result<void> read_remaps(const image::Set& set);
  Result<void> make(RestoreContext& context, std::uint32_t ghost, const std::string& path);
  bool read_ = false;
  std::map<std::uint32_t, std::uint32_t> ghost_of_file_;
  std::map<std::uint32_t, std::string> made_;  // ghost id: path
  Inside* inside_ = nullptr;                   // for the destructor
};

}  // namespace ferry::state::ghost

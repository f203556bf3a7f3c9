// A directory that leaves with its container, which goes on writing to it: the writable layer, a volume.
//
// First all of it is packed, then again and again what changed since, the last time when the container is frozen.
// What has to be looked at is either named by whoever watched the filesystem, or is everything.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "container/layer.h"
#include "container/layer_delta.h"

namespace ferry::container {

enum class TreeForm : std::uint8_t {
  overlay,  // upper directory of a mounted overlay; at the destination it is reached through the mount
  plain,
};

struct TreeChanges {
  std::vector<std::string> removed;
  std::vector<std::string> packed;   // whole; with the directories above them, whose times unpacking would change
  std::vector<std::string> patched;  // large files that were there before: only what differs has to be sent
  bool itself = false;               // owner, mode, times of the directory
};

class LeavingTree {
 public:
  static LeavingTree plain(const std::string& directory) { return {directory, directory, TreeForm::plain}; }
  // `merged`: where the overlay is mounted.  What an upper directory holds need not be all there is of a file: kernel
  // Documentation/filesystems/overlayfs.rst, redirect_dir and metacopy.
  static LeavingTree overlay(const std::string& upper, const std::string& merged) {
    return {upper, merged, TreeForm::overlay};
  }

  [[nodiscard]] const std::string& directory() const { return directory_; }
  // Where its files are read.
  [[nodiscard]] const std::string& content() const { return content_; }

  // Everything, while the container runs.
  Result<LayerReport> pack_all(int out_fd);
  // For a directory that does not exist at the destination yet: the first changes() are everything.
  void begin_empty() { look_ = {}; }

  // What differs from what it was at the last time.  `named`: relative paths that may have changed, nothing else has;
  // without them all is looked at.  `mapped`: may have changed without a trace in their ctime.
  Result<TreeChanges> changes(const std::optional<std::set<std::string>>& named, const std::set<std::string>& mapped);
  Result<LayerReport> pack(const TreeChanges& changes, bool may_change, int out_fd);
  // Whatever the destination has under this path is not what was seen here.
  void distrust(const std::string& path);

 private:
  LeavingTree(std::string directory, std::string content, TreeForm form)
      : directory_(std::move(directory)), content_(std::move(content)), form_(form) {}
  Result<LayerReport> pack_running(const std::string& from, const std::vector<std::string>& paths, bool for_mounted,
                                   int out_fd);
  Result<LayerLook> look_at_some(const std::set<std::string>& paths, LayerLook& before) const;
  Result<void> look_at_parents(const LayerLook& before, LayerLook& now) const;
  void add_links(std::set<std::string>& named) const;
  [[nodiscard]] TreeChanges sorted(const LayerDelta& delta, const std::map<std::string, LayerFile>& before) const;

  std::string directory_;
  std::string content_;
  TreeForm form_;
  void add_redirected(const std::string& path, std::set<std::string>& packed) const;
  [[nodiscard]] std::int64_t own_ctime() const;

  LayerLook look_;
  std::int64_t own_ctime_ = 0;
};

}  // namespace ferry::container

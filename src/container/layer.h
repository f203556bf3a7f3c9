// A container's writable layer (the upper directory of its overlay) as a tar stream, both directions.
//
// What is kept: contents with holes, hard links, owners, modes, times to the nanosecond, extended
// attributes (file capabilities, ACLs, trusted.overlay.opaque and .redirect among them), devices,
// whiteouts (character device 0/0, kernel Documentation/filesystems/overlayfs.rst), fifos, sockets.
// What is not: inode numbers and ctime, which no program can set, and those of overlayfs's own
// attributes that name inodes of the old place (origin, impure, nlink, uuid).
// State   the layer must not change meanwhile: the container is frozen or stopped
// Units   bytes of the tar stream
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace ferry::container {

struct LayerReport {
  std::uint64_t entries = 0;
  std::uint64_t bytes = 0;  // of the stream
};

// Writes the content of `directory` to `out_fd`.
Result<LayerReport> pack_layer(const std::string& directory, int out_fd);

// Some entries only, by their paths relative to `directory` (and "." for itself), for unpack_layer.
struct PackChoice {
  // The container runs: what vanishes is left out, what changes may arrive torn, to be sent again.
  bool may_change = false;
  // For a mounted overlay instead of an upper directory: without whiteouts and overlayfs's attributes,
  // which cannot be made there.
  bool for_mounted = false;
  // Told of each entry once it is packed, or was not there any more; may be empty.
  std::function<void(const std::string& path, bool there)> on_entry = {};
};
Result<LayerReport> pack_layer_entries(const std::string& directory, const std::vector<std::string>& paths,
                                       const PackChoice& choice, int out_fd);

// Reads one stream from `in_fd`, to its end, into an existing directory.  Trusts no name in the
// stream: nothing is written outside of `directory`.  On an error the directory is half filled.
Result<LayerReport> unpack_layer(int in_fd, const std::string& directory);

// Replaces the content of an upper directory by that of a stream so that it can be taken back: the
// stream is unpacked beside it and the two change places at once.
class LayerSwap {
 public:
  static Result<LayerSwap> prepare(int in_fd, const std::string& upper_dir);
  LayerSwap(LayerSwap&& other) noexcept;
  LayerSwap& operator=(LayerSwap&&) = delete;
  // Takes a swap back that was not kept, and removes what is left beside the upper directory.
  ~LayerSwap();

  Result<void> swap();
  void keep();
  [[nodiscard]] const LayerReport& report() const { return report_; }

 private:
  LayerSwap() = default;
  std::string upper_;
  std::string other_;  // beside it; empty once moved from
  bool swapped_ = false;
  LayerReport report_;
};

// True for attributes that are not carried over.
bool is_local_attribute(std::string_view name);

}  // namespace ferry::container

// ferry-reference.json: a checkpoint directory that holds only where the images are.
//
// Docker sends a checkpoint directory through tar twice on its way to the runtime; one that holds a
// reference instead of images costs it nothing (docs/ferry.md).
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "base/error.h"

namespace ferry::engine {

inline constexpr const char* kReferenceFileName = "ferry-reference.json";

struct ReferenceFile {
  std::string images;                   // absolute path of the directory with the images; or empty, then
  std::string receiver;                 // the socket of a receiver that has them (reference.h)
  std::optional<std::string> hostname;  // of the container that is restored into, instead of the original's
  std::string lazy_pages;               // the socket of a lazy-pages daemon; empty: there is none
  bool tcp_close = false;               // established connections belong to the original
};
// Errors: corrupt, unsupported (a later version).
Result<ReferenceFile> parse_reference(std::string_view json);
// nullopt if the directory holds no reference.
Result<std::optional<ReferenceFile>> read_reference(int images_dir);
// What containerd leaves behind of a start is a copy in /tmp that nobody removes: empties it, if
// `images_dir` is such a copy of a reference.
void discard_reference(int images_dir);

}  // namespace ferry::engine

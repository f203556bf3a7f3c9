// A checkpoint directory that holds only the place where the images are.
//
// Docker sends a checkpoint through tar twice on its way to runc and insists on finding it in the
// container's own folder.  A reference satisfies both at the cost of a few hundred bytes; our criu
// follows it.  Its random id matters: containerd refuses a tar that is byte-identical to one it has
// not forgotten yet.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace ferry::container {

inline constexpr const char* kReferenceFile = "ferry-reference.json";

// {"version":1,"id":…} with either "images" or "receiver", and what the restored tree must not take from the images.
struct ReferenceContent {
  std::string id;
  std::string images{};                 // absolute path of the image set
  std::string receiver{};               // or of the socket of a receiver that has it (engine/reference.h)
  std::optional<std::string> hostname;  // of the container that is restored into
  bool close_tcp = false;               // established connections belong to the original
  std::string lazy_pages{};  // the socket of who brings the memory later; empty: all of it is there at the start
};
std::string encode_reference(const ReferenceContent& content);
Result<ReferenceContent> decode_reference(std::string_view json);

// The directory on disk, for as long as the object lives.
class Reference {
 public:
  // Makes CHECKPOINTS_DIR/ferry-ID, 0700, with the reference (0600) and descriptors.json, which runc
  // itself reads from there.
  static Result<Reference> make(const std::string& checkpoints_dir, ReferenceContent content,
                                const std::vector<std::string>& descriptors);
  Reference(Reference&& other) noexcept : directory_(std::move(other.directory_)), name_(std::move(other.name_)) {
    other.directory_.clear();
  }
  Reference& operator=(Reference&&) = delete;
  ~Reference();

  [[nodiscard]] const std::string& name() const { return name_; }  // of the checkpoint, for Docker
  [[nodiscard]] const std::string& directory() const { return directory_; }

 private:
  Reference() = default;
  std::string directory_;
  std::string name_;
};

}  // namespace ferry::container

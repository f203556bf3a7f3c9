// The volumes of a container that moves: which of them go along, and what that means at the destination.
//
// A volume of the local driver without options is a directory of its host, and useless to the container if its content
// stays behind: it goes along.  One with options (NFS, a device, a tmpfs) is made there with the same options, and its
// content is left to whoever serves it.  Docker's shared /dev/shm (--ipc shareable), a tmpfs of the host that the
// container has mounted, is treated like a volume without a name.
#pragma once

#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "container/docker.h"

namespace ferry::container {

struct VolumeChoice {
  std::set<std::string> only;  // by name; empty: all that can
  bool none = false;
  bool replace = false;  // what a volume of the same name holds at the destination
};

struct LeavingVolume {
  VolumeInfo info;       // no name: the shared /dev/shm
  std::string shown_at;  // in the container
  [[nodiscard]] bool is_shm() const { return info.name.empty(); }
};

struct LeavingVolumes {
  std::vector<LeavingVolume> copied;
  std::vector<VolumeInfo> made_only;  // without content
  bool replace = false;
  std::vector<std::string> notes;  // sentences
};

// On the source.  Errors: a chosen one that does not exist, or is written to by others at the same time.
Result<LeavingVolumes> choose_volumes(Docker& docker, const Container& container, const VolumeChoice& choice);
std::string shared_memory_of(const Docker& docker, const std::string& container_id);

std::string encode_volumes(const LeavingVolumes& volumes);
Result<LeavingVolumes> decode_volumes(std::string_view json);

// On the destination: what is done there before the twin is made, and how it is undone.
struct ArrivingVolumes {
  LeavingVolumes asked;
  std::vector<std::string> to_make;       // names
  std::vector<std::string> to_put_aside;  // directories whose content makes room, to come back if the move fails
  std::vector<std::string> obstacles;
  std::vector<std::string> differences;
};
// Looks, changes nothing.
Result<ArrivingVolumes> plan_volumes(Docker& docker, LeavingVolumes asked);
// `move` becomes part of the names of what is put aside.  A failure in the middle is undone by undo_volumes().
Result<void> make_volumes(Docker& docker, const ArrivingVolumes& plan, const std::string& move);
// What may not have been done, or is undone already, is passed over.
Result<void> undo_volumes(Docker& docker, const std::vector<std::string>& made,
                          const std::vector<std::string>& put_aside, const std::string& move);
// The move has succeeded: what was put aside is not needed any more.
Result<void> forget_aside(const std::vector<std::string>& put_aside, const std::string& move);

}  // namespace ferry::container

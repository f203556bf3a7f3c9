// The user namespace of a tree: its maps of ids, userns-NS.img.  Source: user_namespaces(7).
//
// Images hold ids as the tree sees them (CRIU's way), so that its credentials mean the same under other maps.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"
#include "image/proto/ns.pb.h"
#include "state/dump.h"
#include "state/restore.h"

namespace ferry::state::userns {

using Extents = google::protobuf::RepeatedPtrField<pb::UidGidExtent>;
// Text of /proc/PID/uid_map, and back.
Result<Extents> parse_map(std::string_view text);
std::string format_map(const Extents& map);
// An id of ours as the tree sees it.
std::optional<std::uint32_t> inside(const Extents& map, std::uint32_t id);

// Errors: unsupported, for a namespace without maps, in which everybody is nobody.
Result<void> collect(DumpContext& context);
// The maps that a task's ids have to be looked up in; nullptr if it lived in the dumper's user namespace.
const pb::UsernsEntry* maps_of(const image::Set& set, const pb::TaskKobjIdsEntry& ids);

// Writes the maps of the root skeleton, which was made in a user namespace of its own.
Result<void> restore(RestoreContext& context);
// Makes the root skeleton, and with it all that descend from it, the root of that namespace, if it has one:
// until then it is our user, whom the namespace does not know, and who owns none of the tree's files.
Result<void> become_root(RestoreContext& context);
// An id of the tree as we see it.
std::optional<std::uint32_t> outside(const Extents& map, std::uint32_t id);

// A user's and group's ids in a credential that the kernel told us or will be told by us, from and to the ids
// that the tree sees and images hold.  Whoever has none there keeps the id.
struct Owner {
  std::uint32_t uid, gid;
};
Owner inside(const DumpContext& context, Owner ours);
Owner outside(RestoreContext& context, Owner theirs);

// Stands for this process towards skeletons in a user namespace: pidfd_getfd(2) asks for privileges over the
// process that a descriptor is taken from, and a skeleton has none over us.  The deputy has our descriptor
// table (CLONE_FILES), lives in the skeletons' namespace, and does nothing.
class Deputy {
 public:
  static Result<Deputy> make();
  Deputy() = default;
  Deputy(Deputy&& other) noexcept;
  Deputy& operator=(Deputy&& other) noexcept;
  ~Deputy();
  // Into the user namespace of `pid`.
  Result<void> enter(HostPid pid);
  [[nodiscard]] int pidfd() const { return pidfd_.get(); }

 private:
  pid_t pid_ = 0;
  UniqueFd pidfd_, orders_, answers_;
};

}  // namespace ferry::state::userns

// The filesystems that the mounts of a restore are clones of, each made once, on first demand.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"
#include "image/proto/mount.pb.h"
#include "state/mount/archive.h"
#include "state/mount/source.h"
#include "state/restore.h"

namespace ferry::state::mount {

// While the mounts are being built the sources are attached to the stage: a tmpfs of ours over the old root,
// reachable by descriptor only.  With the old root they go away.
class Sources {
 public:
  // `entries`: of all mount namespaces; they and the context have to outlive the object.
  Sources(RestoreContext& context, std::vector<const pb::MntEntry*> entries)
      : context_(context), entries_(std::move(entries)) {}

  // Superblocks that show a namespace which only the skeleton is in; on our own thread.
  Result<void> prepare();

  // Everything below runs on the thread that builds.
  // `top`: its root directory.
  Result<void> make_stage(int top);
  Result<void> put_on_stage(int mount, const std::string& name);
  // The filesystem of the new root, which the caller brings along.
  Result<void> add_root(const pb::MntEntry& root, const std::string& path);

  // For whom a mount is made: the root of its mount namespace, and the network namespace of its tasks.
  struct Asker {
    int root = -1;
    std::uint32_t net = 0;
  };
  // The mount of an entry, attached nowhere; private, unless it brings a master along from outside.
  Result<UniqueFd> mount_of(const pb::MntEntry& entry, const Asker& asker);
  // A mount of the whole filesystem of an entry, on the stage.
  Result<int> whole(const pb::MntEntry& entry, const Asker& asker);
  // When all is in place: what was deleted loses its name, superblocks that were read-only are that again.
  Result<void> finish();

 private:
  [[nodiscard]] std::vector<Node> sockets_of(std::uint32_t dev) const;
  Result<const Source*> source_of(const pb::MntEntry& entry, const Asker& asker);
  Result<UniqueFd> superblock_of(const pb::MntEntry& entry, const Asker& asker);
  Result<UniqueFd> clone_of_source(const pb::MntEntry& entry, const Asker& asker);
  Result<UniqueFd> clone_deleted(int source, const std::string& path, const pb::FerryNode& node);
  Result<void> remove_names();
  Result<UniqueFd> clone_of_device(const pb::MntEntry& entry, const std::string& device);
  Result<UniqueFd> clone_of_namespace(const pb::MntEntry& entry);

  RestoreContext& context_;
  std::vector<const pb::MntEntry*> entries_;
  std::map<std::uint32_t, UniqueFd> early_;
  std::map<std::uint32_t, Source> sources_;
  std::vector<UniqueFd> helpers_;
  // Deleted files and directories that have a name for the time being.
  struct Named {
    UniqueFd directory;
    std::string name;
    bool is_directory = false;
  };
  std::vector<Named> named_;
  UniqueFd stage_, proc_;
  int top_ = -1;
};

}  // namespace ferry::state::mount

#include "state/mount/refill.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <set>
#include <vector>

#include "image/proto/mount.pb.h"
#include "state/inside.h"
#include "state/mount/archive.h"
#include "state/mount/mountinfo.h"
#include "state/nested/nested.h"
#include "sys/file.h"
#include "sys/mount_api.h"

namespace ferry::state::mount {
namespace {

using image::Type;

struct Tmpfs {
  const pb::MntEntry* entry = nullptr;  // a place where it is to be seen as a whole
  std::uint32_t ns = 0;                 // the mount namespace of that place
  std::vector<Node> sockets;
  std::set<std::string> covered;  // "./PATH" of what something is mounted on, in any of the namespaces
};

// Something else could be mounted over it, or it could be mounted over itself.
bool is_visible(const std::vector<const pb::MntEntry*>& mounts, const pb::MntEntry& entry) {
  return entry.root() == "/" && std::count_if(mounts.begin(), mounts.end(), [&](const pb::MntEntry* other) {
                                  return other->mountpoint() == entry.mountpoint();
                                }) == 1;
}

Tmpfs find_tmpfs(const image::Set& set, std::uint32_t dev) {
  Tmpfs out;
  for (const image::Name& name : set.names(Type::mountpoints)) {
    const auto mounts = set.list<pb::MntEntry>(name);
    std::map<std::uint32_t, const pb::MntEntry*> here;  // mounts of it, by their numbers
    for (const auto* entry : mounts) {
      if (entry->root_dev() != dev) {
        continue;
      }
      here.emplace(entry->mnt_id(), entry);
      for (const pb::FerryNode& node : entry->ferry_sockets()) {
        out.sockets.push_back({node.path(), node.mode(), node.uid(), node.gid()});
      }
      if (out.entry == nullptr && is_visible(mounts, *entry)) {
        out.entry = entry;
        out.ns = static_cast<std::uint32_t>(name.id);
      }
    }
    for (const auto* entry : mounts) {
      if (const auto parent = here.find(entry->parent_mnt_id()); parent != here.end() && entry != parent->second) {
        const pb::MntEntry& below = *parent->second;
        out.covered.insert("." + (below.root() == "/" ? "" : below.root()) + "/" +
                           relative_to(entry->mountpoint(), below.mountpoint()));
      }
    }
  }
  return out;
}

bool same(const std::vector<Node>& a, const std::vector<Node>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const Node& x, const Node& y) {
    return x.path == y.path && x.mode == y.mode && x.uid == y.uid && x.gid == y.gid;
  });
}

// What other things are mounted on stays, and so do the directories above it.  (The kernel refuses to remove it only
// in the mount namespace where it is covered, and takes mounts of other namespaces down with it: rename(2), EBUSY.)
Result<void> remove_all(int directory, const std::string& below, const std::set<std::string>& covered,
                        std::set<std::string>& stayed) {
  FERRY_TRY(const auto names, sys::list_directory(directory, "."));
  for (const std::string& name : names) {
    const std::string path = below + "/" + name;
    struct stat st;
    if (::fstatat(directory, name.c_str(), &st, AT_SYMLINK_NOFOLLOW) != 0) {
      return sys_fail(fmt::format("stat({})", path));
    }
    if (S_ISDIR(st.st_mode)) {
      FERRY_TRY(const UniqueFd inner, sys::open_at(directory, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW));
      FERRY_CHECK(remove_all(inner.get(), path, covered, stayed));
    }
    if (covered.contains(path)) {
      stayed.insert(path);
      continue;
    }
    if (::unlinkat(directory, name.c_str(), S_ISDIR(st.st_mode) ? AT_REMOVEDIR : 0) != 0) {
      if (errno != EBUSY && errno != ENOTEMPTY) {
        return sys_fail(fmt::format("unlinkat({})", path));
      }
      stayed.insert(path);
    }
  }
  return {};
}

Result<void> fill_again(const Tmpfs& tmpfs, const std::string& archive) {
  // A mount of its own shows it without what is mounted on its directories.
  FERRY_TRY(const UniqueFd view, sys::clone_mount(AT_FDCWD, tmpfs.entry->mountpoint()));
  struct statfs fs;
  if (::fstatfs(view.get(), &fs) != 0) {
    return sys_fail("fstatfs");
  }
  if (fs.f_type != TMPFS_MAGIC) {
    return fail(Kind::unsupported, "another mount hides this tmpfs, whose content changed while it was being moved");
  }
  FERRY_TRY(const UniqueFd top, sys::open_at(view.get(), ".", O_RDONLY | O_DIRECTORY));
  std::set<std::string> stayed;
  FERRY_CHECK(remove_all(top.get(), ".", tmpfs.covered, stayed));
  if (::fchdir(top.get()) != 0) {
    return sys_fail("fchdir(tmpfs)");
  }
  FERRY_CHECK(extract_here(archive, stayed));
  FERRY_CHECK(make_sockets(top.get(), tmpfs.sockets));
  return ::chdir("/") == 0 ? Result<void>() : sys_fail("chdir(/)");
}

}  // namespace

Result<void> refill_tmpfs(RestoreContext& context, const image::Set& before) {
  for (const image::Name& name : context.set.names(Type::tmpfs_dev)) {
    const std::string* const was = before.raw(name);
    const std::string& archive = *context.set.raw(name);
    const auto dev = static_cast<std::uint32_t>(name.id);
    const Tmpfs tmpfs = find_tmpfs(context.set, dev);
    // Archives of the same content are the same bytes.
    if (was != nullptr && *was == archive && same(find_tmpfs(before, dev).sockets, tmpfs.sockets)) {
      continue;
    }
    if (was == nullptr || tmpfs.entry == nullptr) {
      return fail(Kind::unsupported,
                  "the content of a tmpfs of the container changed while it was being moved, and it is to be seen as "
                  "a whole nowhere; move it again when the container writes less there");
    }
    FERRY_TRY(Inside* const inside, context.nested.inside(context, NsKind::mnt, tmpfs.ns));
    FERRY_CHECK(inside->run([&] { return fill_again(tmpfs, archive); })
                    .during("filling the tmpfs {} again", tmpfs.entry->mountpoint()));
  }
  return {};
}

}  // namespace ferry::state::mount

#include "state/mount/refill.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <set>

#include "image/proto/mount.pb.h"
#include "state/inside.h"
#include "state/mount/archive.h"
#include "sys/file.h"
#include "sys/mount_api.h"

namespace ferry::state::mount {
namespace {

using image::Type;

struct Tmpfs {
  const pb::MntEntry* entry = nullptr;
  std::vector<Node> sockets;
  int places = 0;  // where it is mounted as a whole
};

Tmpfs find_tmpfs(const image::Set& set, std::uint32_t dev) {
  Tmpfs out;
  for (const image::Name& mounts : set.names(Type::mountpoints)) {
    for (const auto* entry : set.list<pb::MntEntry>(mounts)) {
      if (entry->root_dev() != dev) {
        continue;
      }
      for (const pb::FerryNode& node : entry->ferry_sockets()) {
        out.sockets.push_back({node.path(), node.mode(), node.uid(), node.gid()});
      }
      if (entry->root() == "/") {
        out.entry = entry;
        ++out.places;
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

// Something else could be mounted over it, or it could be mounted over itself.
bool is_visible_once(const image::Set& set, const Tmpfs& tmpfs) {
  const std::string& path = tmpfs.entry->mountpoint();
  int here = 0;
  for (const auto* entry : set.list<pb::MntEntry>(set.names(Type::mountpoints).front())) {
    here += entry->mountpoint() == path ? 1 : 0;
  }
  return tmpfs.places == 1 && here == 1;
}

// What other things are mounted on stays (rename(2), EBUSY, for whoever is in the mount namespace), and so do
// the directories above it.
Result<void> remove_all(int directory, const std::string& below, std::set<std::string>& stayed) {
  FERRY_TRY(const auto names, sys::list_directory(directory, "."));
  for (const std::string& name : names) {
    const std::string path = below + "/" + name;
    struct stat st;
    if (::fstatat(directory, name.c_str(), &st, AT_SYMLINK_NOFOLLOW) != 0) {
      return sys_fail(fmt::format("stat({})", path));
    }
    if (S_ISDIR(st.st_mode)) {
      FERRY_TRY(const UniqueFd inner, sys::open_at(directory, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW));
      FERRY_CHECK(remove_all(inner.get(), path, stayed));
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
  FERRY_CHECK(remove_all(top.get(), ".", stayed));
  if (::fchdir(top.get()) != 0) {
    return sys_fail("fchdir(tmpfs)");
  }
  FERRY_CHECK(extract_here(archive, stayed));
  FERRY_CHECK(make_sockets(top.get(), tmpfs.sockets));
  return ::chdir("/") == 0 ? Result<void>() : sys_fail("chdir(/)");
}

}  // namespace

Result<void> refill_tmpfs(HostPid root, const image::Set& before, const image::Set& now) {
  Inside inside;
  bool entered = false;
  for (const image::Name& name : now.names(Type::tmpfs_dev)) {
    const std::string* const was = before.raw(name);
    const std::string& archive = *now.raw(name);
    const auto dev = static_cast<std::uint32_t>(name.id);
    const Tmpfs tmpfs = find_tmpfs(now, dev);
    // Archives of the same content are the same bytes.
    if (was != nullptr && *was == archive && same(find_tmpfs(before, dev).sockets, tmpfs.sockets)) {
      continue;
    }
    if (was == nullptr || tmpfs.entry == nullptr || now.names(Type::mountpoints).size() != 1 ||
        !is_visible_once(now, tmpfs)) {
      return fail(Kind::unsupported,
                  "the content of a tmpfs of the container changed while it was being moved, and it is "
                  "not mounted at one place only; move it again when the container writes less there");
    }
    if (!entered) {
      FERRY_CHECK(inside.enter(root));
      entered = true;
    }
    FERRY_CHECK(inside.run([&] { return fill_again(tmpfs, archive); })
                    .during("filling the tmpfs {} again", tmpfs.entry->mountpoint()));
  }
  return {};
}

}  // namespace ferry::state::mount

#include "state/mount/tmpfs.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>

#include <algorithm>
#include <map>

#include "image/proto/mount.pb.h"
#include "state/dump_host.h"
#include "state/mount/archive.h"
#include "sys/mount_api.h"

namespace ferry::state::mount {
namespace {

// A tmpfs to be kept, and the mount by which it is reached.
struct Wanted {
  const Line* line = nullptr;
  pb::MntEntry* entry = nullptr;
  UniqueFd view;
};
using ByDevice = std::map<std::uint32_t, Wanted>;

// A clone of the mount shows the filesystem without what is mounted on its directories.
Result<void> take(Wanted& wanted) {
  FERRY_TRY(wanted.view, sys::clone_mount(AT_FDCWD, wanted.line->mountpoint));
  // Reading must not leave a trace in the access times.
  return sys::set_mount_attributes(wanted.view.get(), MOUNT_ATTR_NOATIME, MOUNT_ATTR__ATIME, MS_PRIVATE);
}

Result<void> take_visible(ByDevice& wanted) {
  for (auto& [dev, item] : wanted) {
    if ((item.line->flags & MS_UNBINDABLE) != 0) {
      continue;  // what cannot be cloned here can be in a copy of the namespace, made private
    }
    const auto visible = visible_mount_id(AT_FDCWD, item.line->mountpoint);
    if (visible.has_value() && *visible == static_cast<std::uint64_t>(item.line->id)) {
      FERRY_CHECK(take(item).during("mount {}", item.line->mountpoint));
    }
  }
  return {};
}

// Those that lie below another mount, or are unbindable.  In a copy of the namespace, which goes away with the thread,
// everything can be taken down from the top until each was visible once.
Result<void> take_hidden(const View& view, ByDevice& wanted) {
  if (::unshare(CLONE_NEWNS) != 0) {
    return sys_fail("unshare(CLONE_NEWNS)");
  }
  if (::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) {
    return sys_fail("mount(/, private)");
  }
  for (auto it = view.order->rbegin(); it != view.order->rend(); ++it) {
    const Line& line = (*view.lines)[*it];
    const auto found = wanted.find(line.dev);
    if (found != wanted.end() && found->second.line == &line && !found->second.view) {
      FERRY_CHECK(take(found->second).during("mount {}", line.mountpoint));
    }
    if (*it != view.order->front() && ::umount2(line.mountpoint.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW) != 0) {
      if (errno == EINVAL) {  // mount_namespaces(7): the mounts of a user namespace hold together in a copy of ours
        return fail(Kind::unsupported, "{} hides what other mounts hold, in a user namespace, which cannot be carried",
                    line.mountpoint);
      }
      return sys_fail(fmt::format("umount2({}) in a copy of the namespace", line.mountpoint));
    }
  }
  return {};
}

Result<void> archive(DumpContext& context, std::uint32_t dev, Wanted& item) {
  FERRY_TRY(Archived archived, archive_tree(item.view.get()));
  for (const Node& socket : archived.sockets) {
    pb::FerryNode& node = *item.entry->add_ferry_sockets();
    node.set_path(socket.path);
    node.set_mode(socket.mode);
    node.set_uid(socket.uid);
    node.set_gid(socket.gid);
  }
  context.host.keep(std::move(item.view));
  context.set.set_raw({image::Type::tmpfs_dev, dev}, std::move(archived.bytes));
  return {};
}

}  // namespace

Result<void> save_tmpfs(DumpContext& context, const std::vector<View>& views) {
  // The root of the tree is brought along by whoever restores it.
  const View& first = views.front();
  const std::uint32_t root = (*first.lines)[first.order->front()].dev;
  for (const View& view : views) {
    ByDevice wanted;
    for (const image::Entry& item : context.set.entries({image::Type::mountpoints, view.ns.id})) {
      auto* entry = static_cast<pb::MntEntry*>(item.message.get());
      const bool here = entry->fstype() == pb::FSTYPE_TMPFS && !entry->has_ext_key();
      if (!here || context.set.has({image::Type::tmpfs_dev, entry->root_dev()})) {
        continue;
      }
      for (const Line& line : *view.lines) {
        if (line.dev == entry->root_dev() && line.root == "/" && line.dev != root) {
          wanted.emplace(line.dev, Wanted{&line, entry, {}});
        }
      }
    }
    if (wanted.empty()) {
      continue;
    }
    FERRY_CHECK(view.inside->run([&] { return take_visible(wanted); }));
    if (std::any_of(wanted.begin(), wanted.end(), [](const auto& w) { return !w.second.view; })) {
      Inside copy;
      FERRY_CHECK(copy.enter_namespaces(view.ns.task->pid));
      FERRY_CHECK(copy.run([&] { return take_hidden(view, wanted); }));
    }
    for (auto& [dev, item] : wanted) {
      FERRY_CHECK(archive(context, dev, item).during("mount {} (tmpfs)", item.line->mountpoint));
    }
  }
  return {};
}

}  // namespace ferry::state::mount

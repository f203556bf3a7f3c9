#include "state/tun/tun.h"

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <cerrno>

#include "image/proto/inventory.pb.h"
#include "image/proto/net.pb.h"
#include "state/dump_host.h"
#include "state/nested/nested.h"
#include "state/nsids/nsids.h"
#include "sys/file.h"

#ifndef IFF_DETACH_QUEUE
#define IFF_DETACH_QUEUE 0x0400
#endif
#ifndef TUNGETDEVNETNS
#define TUNGETDEVNETNS _IO('T', 227)  // Linux 5.2
#endif

namespace ferry::state {
namespace {

constexpr unsigned kMiscMajor = 10, kTunMinor = 200;  // Documentation/admin-guide/devices.txt

class TunKind : public FileKind {
 public:
  [[nodiscard]] std::string_view name() const override { return "TUN descriptor"; }
  [[nodiscard]] pb::FdType type() const override { return pb::FD_TUNF; }

  [[nodiscard]] bool matches(const FdProbe& probe) const override {
    return S_ISCHR(probe.stat.st_mode) && (probe.info.flags & O_PATH) == 0 &&
           probe.stat.st_rdev == makedev(kMiscMajor, kTunMinor);
  }

  Result<void> collect(const FdProbe& probe, DumpContext& context, pb::FileEntry& out) override {
    const std::string subject = probe.subject();
    FERRY_TRY(const Networks::Place* const network, context.host.networks().of_socket(subject, probe.ours, context));
    pb::TunfileEntry& entry = *out.mutable_tunf();
    entry.set_id(out.id());
    entry.set_ns_id(network->id);
    ifreq asked{};
    if (::ioctl(probe.ours, TUNGETIFF, &asked) == 0) {
      entry.set_netdev(asked.ifr_name);
      entry.set_detached((static_cast<unsigned>(asked.ifr_flags) & IFF_DETACH_QUEUE) != 0);
      FERRY_CHECK(check_interface(probe, context, *network, asked));
    } else if (errno != EBADFD) {  // that is: not attached
      return sys_fail(fmt::format("ioctl({}, TUNGETIFF)", subject));
    }
    // The path under the same number, before the entry itself, as in the sets of CRIU.
    pb::FileEntry path;
    path.set_type(pb::FD_REG);
    path.set_id(out.id());
    pb::RegFileEntry& reg = *path.mutable_reg();
    reg.set_id(out.id());
    reg.set_flags(probe.status_flags());
    reg.set_pos(0);
    reg.set_mnt_id(probe.info.mnt_id);
    FERRY_CHECK(collect_fown(probe, context, *reg.mutable_fown()));
    FERRY_CHECK(context.files.describe(context, probe.task, probe.ours, probe.stat, probe.link, subject, reg));
    context.set.add({image::Type::files}, std::move(path));
    return {};
  }

  Result<UniqueFd> open(const pb::FileEntry& file, RestoreContext& context) override {
    const pb::TunfileEntry& entry = file.tunf();
    FERRY_TRY(const pb::RegFileEntry* const path, path_of(entry.id(), context.set));
    // The descriptor is of the namespace of whoever opens the file.
    FERRY_TRY(Inside* const inside, context.nested.inside_network(context, entry.ns_id()));
    FERRY_TRY(UniqueFd fd, inside->get<UniqueFd>(
                               [&] { return sys::open(path->name(), static_cast<int>(path->flags()) | O_CLOEXEC); }));
    if (!entry.has_netdev()) {
      return fd;
    }
    const pb::NetDeviceEntry* const device = device_of(entry, context.set);
    if (device == nullptr) {
      return fail(Kind::corrupt, "TUN descriptor {} belongs to interface {}, which is not in the set", entry.id(),
                  entry.netdev());
    }
    ifreq request{};
    entry.netdev().copy(request.ifr_name, sizeof request.ifr_name - 1);
    request.ifr_flags = static_cast<short>(device->tun().flags() & ~std::uint32_t{IFF_PERSIST});
    if (::ioctl(fd.get(), TUNSETIFF, &request) != 0) {
      return sys_fail(fmt::format("ioctl(TUNSETIFF {})", entry.netdev()));
    }
    // Of the interface, but a new queue begins with the largest (tun_set_iff in drivers/net/tun.c).
    const int buffer = static_cast<int>(device->tun().sndbuf());
    if (buffer > 0 && ::ioctl(fd.get(), TUNSETSNDBUF, &buffer) != 0) {
      return sys_fail(fmt::format("ioctl(TUNSETSNDBUF {})", entry.netdev()));
    }
    request.ifr_flags = IFF_DETACH_QUEUE;
    if (entry.detached() && ::ioctl(fd.get(), TUNSETQUEUE, &request) != 0) {
      return sys_fail(fmt::format("ioctl(TUNSETQUEUE {}, detach)", entry.netdev()));
    }
    return fd;
  }

  // Its queues are attached by now: it may end with them again.
  Result<void> connect(const pb::FileEntry& file, int fd, RestoreContext& context) override {
    const pb::TunfileEntry& entry = file.tunf();
    const pb::NetDeviceEntry* const device = entry.has_netdev() ? device_of(entry, context.set) : nullptr;
    if (device != nullptr && !entry.detached() && (device->tun().flags() & IFF_PERSIST) == 0 &&
        ::ioctl(fd, TUNSETPERSIST, 0) != 0) {
      return sys_fail(fmt::format("ioctl(TUNSETPERSIST {}, off)", entry.netdev()));
    }
    FERRY_TRY(const pb::RegFileEntry* const path, path_of(entry.id(), context.set));
    return restore_fown(fd, path->fown(), context);
  }

 private:
  static Result<void> check_interface(const FdProbe& probe, DumpContext& context, const Networks::Place& network,
                                      const ifreq& asked) {
    FERRY_TRY(const auto* inventory, context.set.one<pb::InventoryEntry>({image::Type::inventory}));
    if (network.id == namespace_of(inventory->root_ids(), NsKind::net)) {
      return fail(Kind::unsupported,
                  "{}: it is a queue of interface {} of this host, and the interface does not go with the tree",
                  probe.subject(), asked.ifr_name);
    }
    const UniqueFd place(::ioctl(probe.ours, TUNGETDEVNETNS));
    if (place) {  // older kernels do not tell
      FERRY_TRY(const struct stat there, sys::stat_fd(place.get(), probe.subject()));
      FERRY_TRY(const struct stat here, sys::stat_fd(network.ns.get(), probe.subject()));
      if (there.st_ino != here.st_ino) {
        return fail(
            Kind::unsupported,
            "{}: its interface {} was moved to another network namespace than it was made in, which cannot be carried",
            probe.subject(), asked.ifr_name);
      }
    }
    sock_fprog filter{};  // the instructions themselves nobody can read
    if (::ioctl(probe.ours, TUNGETFILTER, &filter) == 0 && filter.len != 0) {
      return fail(Kind::unsupported, "{}: its interface {} has a filter (TUNATTACHFILTER), which cannot be read",
                  probe.subject(), asked.ifr_name);
    }
    return {};
  }

  static Result<const pb::RegFileEntry*> path_of(std::uint32_t id, const image::Set& set) {
    for (const auto* file : set.list<pb::FileEntry>({image::Type::files})) {
      if (file->id() == id && file->type() == pb::FD_REG) {
        return &file->reg();
      }
    }
    return fail(Kind::corrupt, "the set does not say by which path TUN descriptor {} was opened", id);
  }

  static const pb::NetDeviceEntry* device_of(const pb::TunfileEntry& entry, const image::Set& set) {
    for (const auto* device : set.list<pb::NetDeviceEntry>({image::Type::netdev, entry.ns_id()})) {
      if (device->has_tun() && device->name() == entry.netdev()) {
        return device;
      }
    }
    return nullptr;
  }
};

}  // namespace

namespace tun {

Result<Device> look_at(int fd, const std::string& subject) {
  int buffer = 0, header = 0;
  if (::ioctl(fd, TUNGETSNDBUF, &buffer) != 0 || ::ioctl(fd, TUNGETVNETHDRSZ, &header) != 0) {
    return sys_fail(fmt::format("ioctl({}, TUNGETSNDBUF or TUNGETVNETHDRSZ)", subject));
  }
  return Device{static_cast<std::uint32_t>(buffer), static_cast<std::uint32_t>(header)};
}

int queue_of(const DumpContext& context, std::uint32_t network, const std::string& interface) {
  for (const auto* file : context.set.list<pb::FileEntry>({image::Type::files})) {
    if (file->has_tunf() && file->tunf().ns_id() == network && file->tunf().netdev() == interface &&
        !file->tunf().detached()) {
      return context.files.ours(file->id());
    }
  }
  return -1;
}

}  // namespace tun

std::unique_ptr<FileKind> make_tun_kind() { return std::make_unique<TunKind>(); }

}  // namespace ferry::state

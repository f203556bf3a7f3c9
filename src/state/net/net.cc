#include "state/net/net.h"

#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "image/proto/net.pb.h"
#include "state/dump_host.h"
#include "state/nested/nested.h"
#include "state/net/firewall.h"
#include "state/net/links.h"
#include "state/net/sysctl.h"
#include "state/net/tables.h"
#include "state/nsids/nsids.h"
#include "sys/file.h"

namespace ferry::state::net {
namespace {

// netdevice(7).  The kernel gives lo its addresses 127.0.0.1/8 and ::1/128 by itself.
Result<void> bring_loopback_up() {
  const UniqueFd socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq request{};
  std::char_traits<char>::copy(request.ifr_name, "lo", 3);
  if (!socket || ::ioctl(socket.get(), SIOCGIFFLAGS, &request) != 0) {
    return sys_fail("ioctl(lo, SIOCGIFFLAGS)");
  }
  request.ifr_flags = static_cast<short>(request.ifr_flags | IFF_UP);
  if (::ioctl(socket.get(), SIOCSIFFLAGS, &request) != 0) {
    return sys_fail("ioctl(lo, SIOCSIFFLAGS up)");
  }
  return {};
}

Result<UniqueFd> open_sysctl() { return sys::open("/proc/sys/net", O_PATH | O_DIRECTORY); }

Result<void> join_external(RestoreContext& context, const std::string& key) {
  for (const InheritFd& inherit : context.options.inherit_fds) {
    if (inherit.key != key) {
      continue;
    }
    // The skeleton still has our mounts, so our descriptor is a path for it.
    RestoreTask& root = context.root();
    tracee::Batch batch;
    const tracee::Value ns = batch.must(
        "open(network namespace)", SYS_openat,
        {AT_FDCWD, batch.string(fmt::format("/proc/{}/fd/{}", ::getpid(), inherit.fd)), O_RDONLY | O_CLOEXEC, 0});
    batch.must("setns(CLONE_NEWNET)", SYS_setns, {ns, CLONE_NEWNET});
    batch.must("close", SYS_close, {ns});
    FERRY_CHECK(root.process.run(root.leader(), batch).during("joining network namespace {}", key));
    return {};
  }
  return fail(Kind::invalid, "the network namespace is external under the key {}, for which no descriptor was given",
              key);
}

// One namespace of a checkpoint.
struct Found {
  std::uint32_t id = 0;
  UniqueFd ns;
  DumpTask* task = nullptr;  // nullptr: only sockets are in it

  [[nodiscard]] std::string subject() const {
    return fmt::format("network namespace of {}", task != nullptr ? task->subject() : "sockets alone");
  }
};

Result<std::vector<Found>> find_all(DumpContext& context) {
  std::vector<Found> out;
  for (const TreeNamespace& ns : tree_namespaces(context, NsKind::net)) {
    FERRY_TRY(UniqueFd fd, sys::open_at(ns.task->proc.get(), "ns/net", O_RDONLY));
    out.push_back({ns.id, std::move(fd), ns.task});
  }
  for (const Networks::Place* place : context.host.networks().without_tasks()) {
    FERRY_TRY(UniqueFd fd, sys::duplicate(place->ns.get()));
    out.push_back({place->id, std::move(fd), nullptr});
  }
  return out;
}

Result<void> collect_whole(DumpContext& context, const Found& ns, const std::map<std::uint32_t, int>& others) {
  FERRY_TRY(Inside* const inside, ns.task != nullptr ? context.host.inside_of(ns.task->pid)
                                                     : context.host.inside_network(context.root().pid, ns.ns.get()));
  FERRY_TRY(const UniqueFd sysctl, open_sysctl());
  std::vector<pb::NetDeviceEntry> devices;
  pb::NetnsEntry entry;
  const auto look = [&]() -> Result<void> {
    FERRY_TRY(const auto numbers, collect_numbers(others));
    for (const NamespaceNumber& number : numbers) {
      pb::NetnsId& known = *entry.add_nsids();
      known.set_target_ns_id(number.id);
      known.set_netnsid_value(number.number);
    }
    FERRY_TRY(devices, collect_links(context, ns.id, numbers));
    FERRY_CHECK(save_sysctls(sysctl.get(), entry));
    for (pb::NetDeviceEntry& device : devices) {
      if (device.type() == pb::NDTYPE_VETH && !device.has_peer_nsid() && device.peer_ifindex() != device.ifindex() &&
          !has_peer_elsewhere(device)) {
        device.set_peer_nsid(ns.id);
      }
      FERRY_CHECK(save_sysctls_of(sysctl.get(), device));
    }
    FERRY_CHECK(save_tables(context.set, ns.id, entry));
    return save_connections(context.set, ns.id);
  };
  FERRY_CHECK(inside->run(look).during("{}", ns.subject()));
  FERRY_CHECK(save_firewall(context.set, ns.id, ns.ns.get(), *inside).during("{}", ns.subject()));
  for (pb::NetDeviceEntry& device : devices) {
    context.set.add({image::Type::netdev, ns.id}, std::move(device));
  }
  context.set.add({image::Type::netns, ns.id}, std::move(entry));
  return {};
}

// One namespace of a restore.
struct Whole {
  std::uint32_t id = 0;
  Inside* inside = nullptr;
  UniqueFd ns;
  const pb::NetnsEntry* entry = nullptr;
  std::vector<const pb::NetDeviceEntry*> devices;
};

Result<void> restore_whole(RestoreContext& context, std::vector<Whole>& all) {
  FERRY_TRY(const UniqueFd sysctl, open_sysctl());
  FERRY_TRY(const UniqueFd host, sys::open("/proc/self/ns/net", O_RDONLY));
  const bool weak = context.options.weak_sysctls;
  const auto in_each = [&](const std::function<Result<void>(Whole&)>& work) -> Result<void> {
    for (Whole& one : all) {
      FERRY_CHECK(one.inside->run([&] { return work(one); }).during("network namespace {}", one.id));
    }
    return {};
  };
  FERRY_CHECK(in_each([&](Whole& one) { return restore_sysctls(sysctl.get(), *one.entry, weak); }));
  std::vector<Links::Where> where;
  for (const Whole& one : all) {
    where.push_back({one.id, one.inside, one.ns.get(), one.devices});
  }
  Links links(context.options, std::move(where), host.get());
  FERRY_CHECK(links.make());
  const auto fd_of = [&](std::uint32_t id) {
    const auto found = std::find_if(all.begin(), all.end(), [&](const Whole& one) { return one.id == id; });
    return found == all.end() ? -1 : found->ns.get();
  };
  const auto prepare = [&](Whole& one) -> Result<void> {
    FERRY_CHECK(restore_numbers(*one.entry, fd_of));
    for (const pb::NetDeviceEntry* device : one.devices) {
      FERRY_CHECK(restore_sysctls_of(sysctl.get(), *device, weak));
    }
    return switch_off_detection(sysctl.get(), one.devices);
  };
  FERRY_CHECK(in_each(prepare));
  // Rules before anything can pass.
  for (Whole& one : all) {
    FERRY_CHECK(restore_firewall(context.set, one.id, one.ns.get()).during("network namespace {}", one.id));
  }
  FERRY_CHECK(links.set_up());
  const auto finish = [&](Whole& one) -> Result<void> {
    FERRY_CHECK(restore_addresses(context.set, one.id));
    FERRY_CHECK(restore_routes(context.set, one.id, *one.entry));
    FERRY_CHECK(restore_connections(context.set, one.id));
    for (const pb::NetDeviceEntry* device : one.devices) {
      FERRY_CHECK(restore_generation(*device));
      FERRY_CHECK(restore_sysctls_of(sysctl.get(), *device, weak));
    }
    return restore_sysctls(sysctl.get(), *one.entry, weak);
  };
  return in_each(finish);
}

}  // namespace

Result<void> collect(DumpContext& context) {
  FERRY_TRY(const std::vector<Found> namespaces, find_all(context));
  for (const Found& ns : namespaces) {
    FERRY_TRY(const struct stat st, sys::stat_fd(ns.ns.get(), ns.subject()));
    if (const auto key = external_key(context.options, "net", std::to_string(st.st_ino))) {
      pb::NetnsEntry entry;
      entry.set_ext_key(*key);
      context.set.add({image::Type::netns, ns.id}, std::move(entry));
      continue;
    }
    if (context.options.empty_net_namespace) {
      if (ns.task == nullptr) {  // nothing else in the set says that there is one
        context.set.add({image::Type::netns, ns.id}, pb::NetnsEntry());
      }
      continue;
    }
    std::map<std::uint32_t, int> others;
    for (const Found& other : namespaces) {
      if (other.id != ns.id) {
        others.emplace(other.id, other.ns.get());
      }
    }
    FERRY_CHECK(collect_whole(context, ns, others));
  }
  return {};
}

Result<void> restore(RestoreContext& context) {
  FERRY_TRY(const auto ids, new_namespaces(context.set, NsKind::net));
  const std::uint32_t root = namespace_of(*context.root().ids, NsKind::net);
  std::vector<Whole> whole;
  for (const std::uint32_t id : ids) {
    const auto list = context.set.list<pb::NetnsEntry>({image::Type::netns, id});
    if (!list.empty() && list.front()->has_ext_key()) {
      if (id == root) {
        FERRY_CHECK(join_external(context, list.front()->ext_key()));
      }
      continue;
    }
    FERRY_CHECK(context.inside.enter_namespaces(context.root().pid));
    Whole one;
    one.id = id;
    FERRY_TRY(one.inside, context.nested.inside(context, NsKind::net, id));
    one.devices = context.set.list<pb::NetDeviceEntry>({image::Type::netdev, id});
    if (context.options.empty_net_namespace || list.empty() || one.devices.empty()) {
      FERRY_CHECK(one.inside->run(bring_loopback_up));
      continue;
    }
    one.entry = list.front();
    const int nested = context.nested.fd(NsKind::net, id);
    FERRY_TRY(one.ns, nested >= 0 ? sys::duplicate(nested)
                                  : sys::open(fmt::format("/proc/{}/ns/net", context.root().pid), O_RDONLY));
    whole.push_back(std::move(one));
  }
  return whole.empty() ? Result<void>() : restore_whole(context, whole);
}

}  // namespace ferry::state::net

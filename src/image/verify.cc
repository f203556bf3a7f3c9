#include "image/verify.h"

#include <linux/netlink.h>

#include <algorithm>
#include <cstring>

#include "image/findings.h"
#include "image/page_store.h"
#include "image/proto/core.pb.h"
#include "image/proto/inventory.pb.h"
#include "image/proto/ipc.pb.h"
#include "image/proto/mm.pb.h"
#include "image/proto/mount.pb.h"
#include "image/proto/pstree.pb.h"

namespace ferry::image {

std::vector<std::string> verify(const Set& set, int directory) {
  Findings out;
  const FileIndex files(set);
  verify_inventory(set, out);
  verify_tasks(set, files, out);
  verify_memory(set, files, out);
  if (directory >= 0) {
    verify_pages(set, directory, out);
  }
  verify_files(set, files, out);
  verify_queues(set, files, out);
  verify_namespaces(set, out);
  verify_tables(set, out);
  return std::move(out).take();
}

void verify_inventory(const Set& set, Findings& out) {
  const auto list = set.list<pb::InventoryEntry>({Type::inventory, 0});
  if (list.empty()) {
    out.add("inventory.img is missing");
    return;
  }
  const auto& inventory = *list.front();
  out.require(inventory.img_version() == 1 || inventory.img_version() == 2,
              "inventory.img: image version {} cannot be restored", inventory.img_version());
  out.require(inventory.has_root_ids(), "inventory.img lacks root_ids");
  out.require(inventory.has_root_cg_set(), "inventory.img lacks root_cg_set");
  out.require(inventory.fdinfo_per_id(),
              "inventory.img lacks fdinfo_per_id: descriptors are numbered in an old manner");
}

void verify_memory(const Set& set, const FileIndex& files, Findings& out) {
  constexpr std::uint32_t kFilePrivate = 1U << 6;
  constexpr std::uint32_t kFileShared = 1U << 7;
  constexpr std::uint32_t kAnonShared = 1U << 8;
  constexpr std::uint32_t kSysvIpc = 1U << 10;
  constexpr std::uint32_t kSocket = 1U << 11;
  constexpr std::uint32_t kMemfd = 1U << 14;
  constexpr std::uint32_t kGuard = 1U << 16;
  constexpr std::uint32_t kPlugin = 1U << 27;

  for (const Name name : set.names(Type::mm)) {
    const auto file = file_name(name);
    for (const auto* mm : set.list<pb::MmEntry>(name)) {
      out.require(files.has(pb::FD_REG, mm->exe_file_id()), "{}: exe_file_id {} is no REG file", file,
                  mm->exe_file_id());
      std::uint64_t end = 0;
      for (const auto& vma : mm->vmas()) {
        const auto status = vma.status();
        if (vma.start() >= vma.end() || vma.start() % kPageSize != 0 || vma.end() % kPageSize != 0) {
          out.add("{}: the mapping {:#x}-{:#x} is no range of pages", file, vma.start(), vma.end());
          continue;
        }
        if ((status & kGuard) != 0) {
          continue;  // an attribute of pages inside other mappings, listed behind them
        }
        out.require(vma.start() >= end, "{}: the mapping at {:#x} overlaps the one before it", file, vma.start());
        end = vma.end();
        const bool file_backed = (status & (kFilePrivate | kFileShared)) != 0;
        if ((status & kPlugin) != 0) {
          continue;
        }
        if ((status & kMemfd) != 0) {
          out.require(files.has(pb::FD_MEMFD, vma.shmid()), "{}: the mapping at {:#x} has shmid {}, no MEMFD file",
                      file, vma.start(), vma.shmid());
        } else if (file_backed) {
          out.require(files.has(pb::FD_REG, vma.shmid()), "{}: the mapping at {:#x} has shmid {}, no REG file", file,
                      vma.start(), vma.shmid());
        } else if ((status & kSocket) != 0) {
          out.require(files.has(pb::FD_PACKETSK, vma.shmid()),
                      "{}: the mapping at {:#x} has shmid {}, no PACKETSK file", file, vma.start(), vma.shmid());
        } else if ((status & (kAnonShared | kSysvIpc)) != 0) {
          out.require(set.has({Type::pagemap_shmem, vma.shmid()}),
                      "{}: the mapping at {:#x} wants {}, which is missing", file, vma.start(),
                      file_name({Type::pagemap_shmem, vma.shmid()}));
        }
      }
    }
  }
}

void verify_pages(const Set& set, int directory, Findings& out) {
  auto store = PageStore::open(set, directory);
  if (!store) {
    out.add("{}", store.error().message());
    return;
  }
  std::map<std::uint32_t, Name> owners;
  for (const Type type : {Type::pagemap, Type::pagemap_shmem}) {
    for (const Name name : set.names(type)) {
      auto extents = store->extents(name);
      if (!extents) {
        out.add("{}", extents.error().message());
        continue;
      }
      const auto head = set.one<pb::PagemapHead>(name);
      const auto [owner, fresh] = owners.emplace((*head)->pages_id(), name);
      out.require(fresh, "{} and {} both claim {}", file_name(owner->second), file_name(name),
                  pages_file_name((*head)->pages_id()));
      const auto mm = set.list<pb::MmEntry>({Type::mm, name.id});
      if (type != Type::pagemap || mm.empty()) {
        continue;
      }
      // Neighbouring mappings count as one here: pages may be listed across their border.
      std::map<std::uint64_t, std::uint64_t> mapped;
      for (const auto& vma : mm.front()->vmas()) {
        auto& end = mapped[vma.start()];
        end = std::max(end, vma.end());
      }
      for (const Extent& extent : *extents) {
        const std::uint64_t end = extent.vaddr + extent.page_count * kPageSize;
        std::uint64_t at = extent.vaddr;
        for (auto it = mapped.upper_bound(at); it != mapped.begin() && at < end; it = mapped.upper_bound(at)) {
          const auto covered = std::prev(it)->second;
          if (covered <= at) {
            break;
          }
          at = covered;
        }
        out.require(at >= end, "{}: the page at {:#x} is in no mapping of {}", file_name(name), at,
                    file_name({Type::mm, name.id}));
      }
    }
  }
}

void verify_namespaces(const Set& set, Findings& out) {
  const auto inventory = set.list<pb::InventoryEntry>({Type::inventory, 0});
  const pb::TaskKobjIdsEntry none;
  const auto& own = inventory.empty() ? none : inventory.front()->root_ids();
  for (const Name name : set.names(Type::ids)) {
    const auto file = file_name(name);
    for (const auto* ids : set.list<pb::TaskKobjIdsEntry>(name)) {
      const auto wants = [&](bool there, std::uint32_t id, std::uint32_t dumper, Type type) {
        out.require(!there || id == dumper || set.has({type, id}), "{}: {} is missing", file, file_name({type, id}));
      };
      wants(ids->has_mnt_ns_id(), ids->mnt_ns_id(), own.mnt_ns_id(), Type::mountpoints);
      wants(ids->has_uts_ns_id(), ids->uts_ns_id(), own.uts_ns_id(), Type::utsns);
      wants(ids->has_ipc_ns_id(), ids->ipc_ns_id(), own.ipc_ns_id(), Type::ipcns_var);
      wants(ids->has_user_ns_id(), ids->user_ns_id(), own.user_ns_id(), Type::userns);
      wants(ids->has_time_ns_id(), ids->time_ns_id(), own.time_ns_id(), Type::timens);
    }
  }
  std::set<std::uint64_t> devices;
  for (const Name name : set.names(Type::mountpoints)) {
    std::set<std::uint32_t> mounts;
    for (const auto* mount : set.list<pb::MntEntry>(name)) {
      devices.insert(mount->root_dev());
      out.require(mounts.insert(mount->mnt_id()).second, "{}: mount {} is there twice", file_name(name),
                  mount->mnt_id());
    }
  }
  for (const Name name : set.names(Type::tmpfs_dev)) {
    out.require(devices.contains(name.id), "{}: no mount has this device", file_name(name));
  }
  for (const Name name : set.names(Type::ipcns_shm)) {
    for (const auto* segment : set.list<pb::IpcShmEntry>(name)) {
      const Name pages{Type::pagemap_shmem, segment->desc().id()};
      out.require(!segment->in_pagemaps() || set.has(pages), "{}: {} is missing", file_name(name), file_name(pages));
    }
  }
}

// Addresses, routes and rules, as iproute2 saves them: a magic number and netlink messages, each of a length
// that is rounded up to four (netlink(7)).
void verify_tables(const Set& set, Findings& out) {
  for (const Type type : {Type::ifaddr, Type::route, Type::route6, Type::rule}) {
    for (const Name name : set.names(type)) {
      const std::string* const bytes = set.raw(name);
      if (bytes == nullptr || bytes->empty()) {
        continue;
      }
      std::size_t at = sizeof(std::uint32_t);
      while (at + sizeof(nlmsghdr) <= bytes->size()) {
        nlmsghdr head{};
        std::memcpy(&head, bytes->data() + at, sizeof head);
        if (head.nlmsg_len < sizeof head || head.nlmsg_len > bytes->size() - at) {
          break;
        }
        at += std::min<std::size_t>(NLMSG_ALIGN(head.nlmsg_len), bytes->size() - at);
      }
      out.require(at == bytes->size(), "{}: the message at {:#x} is cut off", file_name(name), at);
    }
  }
}

}  // namespace ferry::image

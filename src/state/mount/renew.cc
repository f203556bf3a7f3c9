#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <tuple>

#include "image/proto/mount.pb.h"
#include "state/mount/mount.h"
#include "state/mount/refill.h"

namespace ferry::state::mount {
namespace {

using ById = std::map<std::uint32_t, const pb::MntEntry*>;  // of one mount namespace, by the kernel's numbers

ById by_id(const image::Set& set, const image::Name& name) {
  ById out;
  for (const pb::MntEntry* entry : set.list<pb::MntEntry>(name)) {
    out.emplace(entry->mnt_id(), entry);
  }
  return out;
}

bool same(const pb::MntEntry& a, const pb::MntEntry& b) {
  const auto what = [](const pb::MntEntry& e) { return std::tie(e.mountpoint(), e.options(), e.source()); };
  return a.fstype() == b.fstype() && a.parent_mnt_id() == b.parent_mnt_id() && a.flags() == b.flags() &&
         what(a) == what(b);
}

Result<void> check_same(const ById& before, const ById& now) {
  for (const auto& [id, entry] : now) {
    const auto then = before.find(id);
    if (then == before.end()) {
      return fail(Kind::unsupported, "{} was mounted while the container was being moved; move it again",
                  entry->mountpoint());
    }
    if (!same(*then->second, *entry)) {
      return fail(Kind::unsupported,
                  "the mount {} was moved or changed while the container was being moved; move it again",
                  entry->mountpoint());
    }
  }
  for (const auto& [id, entry] : before) {
    if (!now.contains(id)) {
      return fail(Kind::unsupported, "{} was unmounted while the container was being moved; move it again",
                  entry->mountpoint());
    }
  }
  return {};
}

}  // namespace

Result<void> renew(RestoreContext& context, const image::Set& before) {
  for (const image::Name& name : context.set.names(image::Type::mountpoints)) {
    const ById now = by_id(context.set, name);
    // A number is of one mount in all namespaces (proc(5), mountinfo), so one mount tells which namespace it was.
    for (const image::Name& candidate : before.names(image::Type::mountpoints)) {
      const ById then = by_id(before, candidate);
      if (std::any_of(now.begin(), now.end(), [&](const auto& mount) { return then.contains(mount.first); })) {
        FERRY_CHECK(check_same(then, now));
      }
    }
  }
  return refill_tmpfs(context, before);
}

}  // namespace ferry::state::mount

#include "state/uts/uts.h"

#include <sys/utsname.h>
#include <unistd.h>

#include "image/proto/ns.pb.h"
#include "state/dump_host.h"
#include "state/nested/nested.h"
#include "state/nsids/nsids.h"

namespace ferry::state::uts {

Result<void> collect(DumpContext& context) {
  for (const TreeNamespace& ns : tree_namespaces(context, NsKind::uts)) {
    FERRY_TRY(Inside* const inside, context.host.inside_of(ns.task->pid));
    utsname names{};
    const auto ask = [&]() -> Result<void> {
      if (::uname(&names) != 0) {
        return sys_fail("uname");
      }
      return {};
    };
    FERRY_CHECK(inside->run(ask));
    pb::UtsnsEntry entry;
    entry.set_nodename(names.nodename);
    entry.set_domainname(names.domainname);
    context.set.add({image::Type::utsns, ns.id}, std::move(entry));
  }
  return {};
}

namespace {

Result<void> set_names(const pb::UtsnsEntry& entry) {
  const std::string& node = entry.nodename();
  const std::string& domain = entry.domainname();
  if (::sethostname(node.data(), node.size()) != 0) {
    return sys_fail(fmt::format("sethostname({})", node));
  }
  if (::setdomainname(domain.data(), domain.size()) != 0) {
    return sys_fail(fmt::format("setdomainname({})", domain));
  }
  return {};
}

Result<void> set_names_of(RestoreContext& context, std::uint32_t id) {
  FERRY_TRY(const auto* entry, context.set.one<pb::UtsnsEntry>({image::Type::utsns, id}));
  FERRY_TRY(Inside* const inside, context.nested.inside(context, NsKind::uts, id));
  return inside->run([&] { return set_names(*entry); });
}

// Whether an earlier look at the tree found the same names in the same namespace.
bool had_these_names(const image::Set& before, const image::Set& now, std::uint32_t id) {
  const std::uint64_t inode = inode_of(now, id);
  const auto names = now.list<pb::UtsnsEntry>({image::Type::utsns, id});
  for (const image::Name& name : before.names(image::Type::utsns)) {
    const auto then = before.list<pb::UtsnsEntry>(name);
    if (inode != 0 && inode_of(before, static_cast<std::uint32_t>(name.id)) == inode && names.size() == 1 &&
        then.size() == 1) {
      return names[0]->nodename() == then[0]->nodename() && names[0]->domainname() == then[0]->domainname();
    }
  }
  return false;
}

}  // namespace

Result<void> restore(RestoreContext& context) {
  FERRY_TRY(const auto ids, new_namespaces(context.set, NsKind::uts));
  for (const std::uint32_t id : ids) {
    FERRY_CHECK(context.inside.enter_namespaces(context.root().pid));
    FERRY_CHECK(set_names_of(context, id));
  }
  return {};
}

Result<void> renew(RestoreContext& context, const image::Set& before) {
  FERRY_TRY(const auto ids, new_namespaces(context.set, NsKind::uts));
  for (const std::uint32_t id : ids) {
    if (!had_these_names(before, context.set, id)) {
      FERRY_CHECK(set_names_of(context, id));
    }
  }
  return {};
}

}  // namespace ferry::state::uts

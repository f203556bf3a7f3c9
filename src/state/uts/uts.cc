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

Result<void> restore(RestoreContext& context) {
  FERRY_TRY(const auto ids, new_namespaces(context.set, NsKind::uts));
  for (const std::uint32_t id : ids) {
    FERRY_TRY(const auto* entry, context.set.one<pb::UtsnsEntry>({image::Type::utsns, id}));
    FERRY_CHECK(context.inside.enter_namespaces(context.root().pid));
    FERRY_TRY(Inside* const inside, context.nested.inside(context, NsKind::uts, id));
    const auto set = [&]() -> Result<void> {
      const std::string& node = entry->nodename();
      const std::string& domain = entry->domainname();
      if (::sethostname(node.data(), node.size()) != 0) {
        return sys_fail(fmt::format("sethostname({})", node));
      }
      if (::setdomainname(domain.data(), domain.size()) != 0) {
        return sys_fail(fmt::format("setdomainname({})", domain));
      }
      return {};
    };
    FERRY_CHECK(inside->run(set));
  }
  return {};
}

}  // namespace ferry::state::uts

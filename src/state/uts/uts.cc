#include "state/uts/uts.h"

#include <sys/utsname.h>
#include <unistd.h>

#include "image/proto/ns.pb.h"
#include "state/dump_host.h"
#include "state/nsids/nsids.h"

namespace ferry::state::uts {

Result<void> collect(DumpContext& context) {
  FERRY_TRY(const NamespaceIds ids, NamespaceIds::of(context.set));
  if (!ids.is_new(NsKind::uts)) {
    return {};
  }
  utsname names{};
  const auto ask = [&]() -> Result<void> {
    if (::uname(&names) != 0) {
      return sys_fail("uname");
    }
    return {};
  };
  FERRY_CHECK(context.host.inside().run(ask));
  pb::UtsnsEntry entry;
  entry.set_nodename(names.nodename);
  entry.set_domainname(names.domainname);
  context.set.add({image::Type::utsns, ids.id(NsKind::uts)}, std::move(entry));
  return {};
}

Result<void> restore(RestoreContext& context) {
  FERRY_TRY(const NamespaceIds ids, NamespaceIds::of(context.set));
  if (!ids.is_new(NsKind::uts)) {
    return {};
  }
  FERRY_TRY(const auto* entry, context.set.one<pb::UtsnsEntry>({image::Type::utsns, ids.id(NsKind::uts)}));
  FERRY_CHECK(context.inside.enter_namespaces(context.root().pid));
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
  return context.inside.run(set);
}

}  // namespace ferry::state::uts

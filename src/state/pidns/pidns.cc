#include "state/pidns/pidns.h"

#include "image/proto/ns.pb.h"
#include "state/nsids/nsids.h"

namespace ferry::state::pidns {

Result<void> collect(DumpContext& context) {
  FERRY_TRY(const NamespaceIds ids, NamespaceIds::of(context.set));
  if (!ids.is_new(NsKind::pid)) {
    return {};
  }
  const DumpTask& root = context.root();
  FERRY_TRY(const std::uint64_t inode, namespace_inode(root.pid, "pid"));
  if (const auto key = external_key(context.options, "pid", std::to_string(inode))) {
    pb::PidnsEntry entry;
    entry.set_ext_key(*key);
    context.set.add({image::Type::pidns, ids.id(NsKind::pid)}, std::move(entry));
    return {};
  }
  if (root.ns_pid.value != 1) {
    return fail(Kind::unsupported,
                "{} is number {} of its pid namespace, not the first: dump the whole namespace, or declare it "
                "external (--external pid[{}]:KEY)",
                root.subject(), root.ns_pid, inode);
  }
  return {};
}

Result<std::optional<int>> external_fd(const image::Set& set, const RestoreOptions& options) {
  FERRY_TRY(const NamespaceIds ids, NamespaceIds::of(set));
  const auto list = set.list<pb::PidnsEntry>({image::Type::pidns, ids.id(NsKind::pid)});
  if (!ids.is_new(NsKind::pid) || list.empty() || !list.front()->has_ext_key()) {
    return std::optional<int>();
  }
  for (const InheritFd& inherit : options.inherit_fds) {
    if (inherit.key == list.front()->ext_key()) {
      return std::optional<int>(inherit.fd);
    }
  }
  return fail(Kind::invalid, "the pid namespace is external under the key {}, for which no descriptor was given",
              list.front()->ext_key());
}

}  // namespace ferry::state::pidns

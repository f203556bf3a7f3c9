#include <cstring>
#include <map>

#include "image/proto/inventory.pb.h"
#include "image/proto/net.pb.h"
#include "state/inet_socket/inet_socket.h"
#include "state/inet_socket/inject.h"
#include "state/nested/nested.h"
#include "state/nsids/nsids.h"
#include "state/tcp/tcp.h"
#include "sys/file.h"

namespace ferry::state::inet_socket {

bool is_connection(const pb::InetSkEntry& entry) {
  return entry.proto() == IPPROTO_TCP && entry.dst_port() != 0 && tcp::has_peer(entry.state());
}

Result<network_lock::Connection> connection_of(const pb::InetSkEntry& entry) {
  FERRY_TRY(const Endpoint source, Endpoint::from_image(entry.family(), entry.src_port(), entry.src_addr()));
  FERRY_TRY(const Endpoint destination, Endpoint::from_image(entry.family(), entry.dst_port(), entry.dst_addr()));
  const Endpoint local = on_the_wire(source), remote = on_the_wire(destination);
  if (local.family != remote.family) {
    return fail(Kind::corrupt, "a TCP connection from {} to {}", source.text(), destination.text());
  }
  network_lock::Connection out;
  out.ipv6 = local.family == AF_INET6;
  std::memcpy(out.local.data(), local.words.data(), local.words.size() * sizeof local.words[0]);
  std::memcpy(out.remote.data(), remote.words.data(), remote.words.size() * sizeof remote.words[0]);
  out.local_port = local.port;
  out.remote_port = remote.port;
  return out;
}

Result<network_lock::Locks> lock_for_restore(RestoreContext& context) {
  FERRY_TRY(const auto* inventory, context.set.one<pb::InventoryEntry>({image::Type::inventory}));
  FERRY_TRY(const NamespaceIds namespaces, NamespaceIds::of(context.set));
  std::map<std::uint32_t, std::vector<network_lock::Connection>> connections;  // by network namespace
  for (const auto* file : context.set.list<pb::FileEntry>({image::Type::files})) {
    if (file->type() == pb::FD_INETSK && is_connection(file->isk())) {
      FERRY_TRY(auto connection, connection_of(file->isk()));
      const std::uint32_t ns = file->isk().has_ns_id() ? file->isk().ns_id() : namespaces.id(NsKind::net);
      connections[ns].push_back(connection);
    }
  }
  network_lock::Locks out;
  if (connections.empty() || context.options.tcp_close || inventory->tcp_close()) {
    return out;
  }
  for (auto& [id, theirs] : connections) {
    network_lock::Request request;
    request.connections = std::move(theirs);
    const auto about = context.set.list<pb::NetnsEntry>({image::Type::netns, id});
    const bool external = !about.empty() && about.front()->has_ext_key();
    request.whole = id != 0 && id != namespace_of(inventory->root_ids(), NsKind::net) && !external;
    request.method = context.options.network_lock;
    if (!request.whole && inventory->network_lock_method() <= static_cast<std::uint32_t>(NetworkLock::skip)) {
      // What the dump has left is to be found and removed.
      request.method = static_cast<NetworkLock>(inventory->network_lock_method());
    }
    // Sets of CRIU before 4.0 have no id, and name their table by the root task's number.
    request.id = inventory->dump_criu_run_id();
    if (request.id.empty()) {
      request.id = fmt::format("{}", context.root().ns_pid());
    }
    FERRY_TRY(const UniqueFd ns, context.nested.network(context, id));
    FERRY_TRY(auto lock, network_lock::Lock::take(request, ns.get(), true));
    out.add(std::move(lock));
  }
  return out;
}

}  // namespace ferry::state::inet_socket

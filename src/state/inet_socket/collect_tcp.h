// The TCP sockets of a tree, checkpoint: what they are is asked one by one, what they hold when all are known
// and the network is locked.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "state/file_kind.h"
#include "state/inet_socket/inet_socket.h"
#include "state/network_lock/network_lock.h"
#include "state/nsids/networks.h"

namespace ferry::state::inet_socket {

class TcpCollector {
 public:
  // Errors: unsupported for a connection that is neither to be kept (--tcp-established) nor closed (--tcp-close).
  Result<void> collect(const FdProbe& probe, DumpContext& context, const Networks::Place& network,
                       pb::InetSkEntry& entry);
  // `entries`: all Internet sockets by their ids.
  Result<void> finish(DumpContext& context, const std::map<std::uint32_t, pb::InetSkEntry*>& entries);
  // The sockets are left in repair mode, so that they end without a word, and the lock stays.
  Result<void> before_end();
  Result<void> before_going_on();

 private:
  struct Known {
    std::uint32_t id;
    int ours;  // lives as long as the FileTable
    const Networks::Place* network;
    std::string subject;
  };
  Result<void> lock(DumpContext& context, const Networks::Place& network,
                    const std::vector<pb::InetSkEntry*>& connections);
  static Result<void> check_listener(const Known& listener, const DumpOptions& options);

  std::vector<Known> listeners_, connections_;
  network_lock::Locks locks_;
};

}  // namespace ferry::state::inet_socket

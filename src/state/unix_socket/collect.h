// Unix sockets, checkpoint.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "state/file_kind.h"
#include "state/nsids/networks.h"
#include "sys/sock_diag.h"

namespace ferry::state::unix_socket {

class Collector {
 public:
  Result<void> collect(const FdProbe& probe, DumpContext& context, pb::FileEntry& out);
  // When all are known: peers, waiting connections, queues.  Descriptors in flight may bring further
  // sockets, which are then seen to as well.
  Result<void> finish(DumpContext& context);

 private:
  struct Known {
    std::uint32_t id;
    std::string subject;
    DumpTask* task;
    int ours;  // lives as long as the FileTable
    sys::UnixDiag diag;
  };

  // What was learned of one network namespace.
  struct Asked {
    sys::Netlink netlink;
    std::size_t times = 0;
    std::map<std::uint32_t, sys::UnixDiag> all;  // by inode, if there are many sockets
  };
  Result<Asked*> asked_in(const Networks::Place& network, DumpContext& context);
  Result<sys::UnixDiag> diag_of(std::uint32_t inode, const Networks::Place& network, DumpContext& context);
  Result<void> collect_name(const FdProbe& probe, pb::UnixSkEntry& entry) const;
  Result<void> collect_path(const FdProbe& probe, const std::string& path, pb::UnixSkEntry& entry) const;
  Result<void> collect_peer(const Known& known, DumpContext& context);
  Result<void> collect_external(const Known& known, DumpContext& context);
  Result<void> collect_queue(const Known& known, DumpContext& context);
  Result<void> check_pending(const Known& listener) const;
  Result<pb::UnixSkEntry*> entry_of(const Known& known) const;

  std::map<std::uint32_t, Asked> asked_;  // by network namespace
  std::vector<Known> known_;
  std::map<std::uint32_t, pb::UnixSkEntry*> entries_;   // by id, once all are in the set
  std::map<std::uint32_t, std::size_t> by_inode_;       // in known_
  std::map<std::uint32_t, std::uint32_t> waiting_for_;  // inode of a connecting socket: of its listener
  std::set<std::uint32_t> external_;                    // inodes of peers outside that have their entry
};

}  // namespace ferry::state::unix_socket

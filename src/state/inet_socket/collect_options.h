// The options of all Internet sockets of a tree.  A hundred calls for each add up, and a server may have
// thousands of sockets: they are asked by several threads, when all are known.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "state/file_kind.h"
#include "state/socket/more_options.h"

namespace ferry::state::inet_socket {

class OptionsCollector {
 public:
  // `connected`: a TCP connection, or what is left of one.  The descriptor has to stay open until run().
  void add(const pb::InetSkEntry& entry, int ours, const Networks::Place& network, bool connected, std::string subject);
  // Completes the entries, by their ids.
  Result<void> run(const std::map<std::uint32_t, pb::InetSkEntry*>& entries);

 private:
  struct Job {
    std::uint32_t id;
    int ours;
    const Networks::Place* network;
    bool connected;
    std::string subject;
  };
  Result<void> ask(const Job& job, pb::InetSkEntry& entry) const;

  std::vector<Job> jobs_;
  socket::MoreOptionsReader more_;
};

}  // namespace ferry::state::inet_socket

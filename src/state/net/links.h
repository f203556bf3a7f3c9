// Network interfaces: netdev-NS.img.  Source: rtnetlink(7), Documentation/networking/tuntap.rst.
//
// What the kernel says of a link when it is asked is nearly what it wants to hear when one is made, so that is
// kept as it is (ferry_link) beside the fields that CRIU has for the kinds it knows.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"
#include "image/proto/net.pb.h"
#include "state/dump.h"
#include "state/restore.h"

namespace ferry::state::net {

// Numbers that other namespaces have in this one (RTM_NEWNSID).
struct NamespaceNumber {
  std::uint32_t id = 0;  // of the set
  int number = 0;
};

// Inside the network namespace with that number.  Errors: unsupported, naming the interface that has no way back.
Result<std::vector<pb::NetDeviceEntry>> collect_links(const DumpContext& context, std::uint32_t network,
                                                      const std::vector<NamespaceNumber>& numbers);
// Whether its other end or lower link is in another network namespace.
bool has_peer_elsewhere(const pb::NetDeviceEntry& device);
// `namespaces`: descriptors by number of the set.
Result<std::vector<NamespaceNumber>> collect_numbers(const std::map<std::uint32_t, int>& namespaces);
Result<void> restore_numbers(const pb::NetnsEntry& entry, const std::function<int(std::uint32_t)>& fd_of);

// All links of all namespaces of a set: pairs may lie in two.
class Links {
 public:
  struct Where {
    std::uint32_t id = 0;
    Inside* inside = nullptr;
    int ns = -1;  // a descriptor of it
    std::vector<const pb::NetDeviceEntry*> devices;
  };
  // `host_ns`: a descriptor of our own network namespace.  All of it has to outlive the object.
  Links(const RestoreOptions& options, std::vector<Where> where, int host_ns)
      : options_(options), where_(std::move(where)), host_ns_(host_ns) {}

  // Makes them, down and without addresses, with their numbers.
  Result<void> make();
  // Bridges get their ports, with what they were told of them; links are set up as they were.
  Result<void> set_up();

 private:
  Result<bool> make_one(Where& where, const pb::NetDeviceEntry& device);
  Result<void> make_pair(Where& where, const pb::NetDeviceEntry& device);
  Result<void> make_outside(Where& where, const pb::NetDeviceEntry& device, const std::string& lower);
  std::optional<std::string> outer_name(const std::string& kind, const std::string& name) const;

  const RestoreOptions& options_;
  std::vector<Where> where_;
  int host_ns_;
  std::set<const pb::NetDeviceEntry*> made_;
};

}  // namespace ferry::state::net

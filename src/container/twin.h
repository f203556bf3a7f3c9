// The twin: the container that takes the place of a running one on another host.
//
// Pure planning: what has to be created there, what will be different, what makes it impossible.  The
// caller gathers the facts, shows the sentences, and acts.
#pragma once

#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "container/docker.h"

namespace ferry::container {

// What the destination has, as far as this container asks for it.
struct DestinationFacts {
  std::string api_version;                  // decides where a MAC address goes
  std::string name_holder;                  // id of the container that has the name already; empty if free
  std::string image_of_name;                // id of the image that the image's name means there; empty if none
  std::map<std::string, Network> networks;  // by name, those that exist
  std::set<std::string> volumes;            // named volumes that exist
  std::set<std::string> copied_volumes;     // whose content comes along
  std::set<std::string> paths;              // sources of bind mounts that exist
  std::vector<Docker::TakenPort> taken_ports;
};

struct TwinConnection {  // a further network, for POST /networks/NETWORK/connect
  std::string network;
  std::string request_json;
};

struct TwinPlan {
  std::string name;
  std::string request_json;                 // for POST /containers/create: without restart policy and --rm
  std::vector<TwinConnection> connections;  // to make before the start
  RestartPolicy restart_policy;             // to give it when it has taken over
  bool keeps_addresses = true;              // all that it has beside its loopback: then connections can go on
  bool auto_remove = false;                 // the source had --rm; no request can give it to a container later
  std::vector<std::string> obstacles;       // sentences; empty if the move is possible
  std::vector<std::string> differences;     // sentences: what will not be as it was
};

// `source_networks` describes the source's networks by name.
Result<TwinPlan> plan_twin(const Container& source, const std::map<std::string, Network>& source_networks,
                           const DestinationFacts& destination);

// Run on the destination, with the source's description.
Result<DestinationFacts> look_at_destination(Docker& docker, const Container& source);
// Run on the source.
Result<std::map<std::string, Network>> networks_of(Docker& docker, const Container& source);

// Serial forms for the connection between the hosts (the container itself travels as inspect_json).
std::string encode_networks(const std::map<std::string, Network>& networks);
Result<std::map<std::string, Network>> decode_networks(std::string_view json);

}  // namespace ferry::container

#include <unistd.h>

#include "container/twin.h"

namespace ferry::container {
namespace {

// What is not there is an answer here, not an error.
template <class T>
Result<bool> found(const Result<T>& answer) {
  if (answer) {
    return true;
  }
  if (answer.error().kind == Kind::gone) {
    return false;
  }
  return tl::unexpected<Error>(answer.error());
}

}  // namespace

Result<DestinationFacts> look_at_destination(Docker& docker, const Container& source) {
  DestinationFacts facts;
  facts.api_version = docker.api().version();
  const auto holder = docker.container(source.name);
  FERRY_TRY(const bool name_taken, found(holder));
  if (name_taken) {
    facts.name_holder = holder->id;
  }
  const auto image = docker.image(source.image_name);
  FERRY_TRY(const bool image_known, found(image));
  if (image_known) {
    facts.image_of_name = image->id;
  }
  for (const Endpoint& endpoint : source.endpoints) {
    auto network = docker.network(endpoint.network);
    FERRY_TRY(const bool exists, found(network));
    // Docker also finds networks by the beginning of an id.
    if (exists && network->name == endpoint.network) {
      facts.networks.emplace(endpoint.network, *network);
    }
  }
  for (const Mount& mount : source.mounts) {
    if (mount.type == "volume") {
      FERRY_TRY(const bool exists, docker.volume_exists(mount.name));
      if (exists) {
        facts.volumes.insert(mount.name);
      }
    } else if (mount.type == "bind" && ::access(mount.source.c_str(), F_OK) == 0) {
      facts.paths.insert(mount.source);
    }
  }
  FERRY_TRY(facts.taken_ports, docker.published_ports());
  return facts;
}

}  // namespace ferry::container

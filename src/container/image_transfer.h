// Bringing an image to another daemon without the layers that it has already.
//
// Two hosts agree on a layer by its chain id (OCI image specification, config.md "Layer ChainID"): a
// digest of the layer and of all below it.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "container/docker.h"

namespace ferry::container {

// One chain id for each diff id, in order.
std::vector<std::string> chain_ids(const std::vector<std::string>& diff_ids);

// Of every image that the daemon holds.
Result<std::set<std::string>> present_chain_ids(Docker& docker);

struct ImageReport {
  std::uint64_t layers = 0;  // that the image has
  std::uint64_t layers_sent = 0;
  std::uint64_t bytes = 0;  // of the stream
};

// Writes a stream for load_image to `out_fd`.  `name` is a tag or an id; a tag travels along.
// Shape   the tar of "docker save" without the content of layers whose chain ids are in `present`;
//         Docker takes a layer that it knows by chain id without looking for its content
Result<ImageReport> export_image(Docker& docker, const std::string& name, const std::set<std::string>& present,
                                 int out_fd);

// Reads `in_fd` to its end.
Result<void> load_image(Docker& docker, int in_fd);

// Which entries of a saved image are left out.  Errors: corrupt, if the manifest does not fit.
Result<std::set<std::string>> entries_to_leave_out(std::string_view manifest_json,
                                                   const std::vector<std::string>& diff_ids,
                                                   const std::set<std::string>& present);

}  // namespace ferry::container

// Hostile configuration files and RPC requests: whatever they hold, they are read or refused.
//
// The first byte says which of the two the rest is.
#include <cstddef>
#include <cstdint>
#include <string>

#include "base/log.h"
#include "programs/criu/config_file.h"
#include "programs/criu/option_table.h"
#include "programs/criu/rpc_options.h"
#include "rpc.pb.h"

namespace {

using namespace ferry;
using namespace ferry::criu;

void as_config(const std::string& text) {
  const auto lines = parse_config(text);
  if (!lines.has_value()) {
    return;
  }
  Settings settings;
  for (const ConfigLine& line : *lines) {
    bool negated = false;
    if (const Option* const option = find_option(line.option, negated); option != nullptr) {
      (void)apply_option(settings, *option, negated, line.value);
    }
  }
}

void as_request(const std::string& bytes) {
  rpc::criu_req request;
  if (!request.ParsePartialFromString(bytes)) {
    return;
  }
  Settings settings;
  (void)apply_rpc_places(settings, request.opts(), HostPid{1});
  (void)apply_rpc_options(settings, request.opts());
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  ferry::log::configure({.level = static_cast<ferry::log::Level>(0), .fd = 2, .timestamps = false});
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) {
    return 0;
  }
  const std::string rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] % 2 == 0) {
    as_config(rest);
  } else {
    as_request(rest);
  }
  return 0;
}

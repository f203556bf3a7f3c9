// What this kernel offers of what ferry needs: `criu check`, and FEATURE_CHECK by RPC.
#pragma once

#include <string_view>

#include "base/error.h"

namespace ferry::engine {

enum class Feature {
  available,  // the kernel has it and ferry uses it
  missing,    // the kernel lacks it
  unused,     // CRIU has a feature of this name; ferry does nothing with it, so nobody may rely on it
  unknown,    // no feature of this name
};

// `name` is one of criu(8)'s, e.g. "clone3_set_tid".  A probe leaves nothing behind; some fork.
// Errors: os, if a probe itself could not run.
Result<Feature> probe_feature(std::string_view name);

// All that a dump or a restore cannot do without.  Errors: denied, without root's rights;
// unsupported, naming the first thing that is missing.
Result<void> check_required_features();
// What only some trees need (a time namespace, for one).  Errors: as above.
Result<void> check_extra_features();

}  // namespace ferry::engine

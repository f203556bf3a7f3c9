// cpuinfo.img: what the dumping host's processor offers to programs.
#pragma once

#include <cstdint>

#include "base/error.h"
#include "image/set.h"

namespace ferry::pb {
class CpuinfoX86Entry;
}

namespace ferry::state::cpu {

// This host's processor.  Errors: unsupported, if it has no CPUID leaf of vendors and features.
Result<void> read_cpuinfo(pb::CpuinfoX86Entry& out);

// Whether programs that ran on `image` can run on `host`; `capability` chooses what is compared
// (criu(8) --cpu-cap).  Errors: unsupported, naming the instructions or state that the host lacks.
Result<void> compare_cpuinfo(const pb::CpuinfoX86Entry& image, const pb::CpuinfoX86Entry& host,
                             std::uint32_t capability);

// Into and out of a set; one without cpuinfo.img is right anywhere.
Result<void> collect_cpuinfo(image::Set& set);
Result<void> check_cpuinfo(const image::Set& set, std::uint32_t capability);

// The file alone.
Result<void> dump_cpuinfo(int images_dir);
// Errors: also gone or corrupt, for a cpuinfo.img that is none.
Result<void> check_cpuinfo(int images_dir, std::uint32_t capability);

}  // namespace ferry::state::cpu

// The statistics that CRIU leaves in its work directory: stats-dump and stats-restore.
#pragma once

#include <string>

#include "base/error.h"

namespace ferry::pb {
class StatsEntry;
}

namespace ferry::image {

Result<void> save_stats(const pb::StatsEntry& stats, int directory, const std::string& file);
// Errors: gone, corrupt.
Result<pb::StatsEntry> load_stats(int directory, const std::string& file);

}  // namespace ferry::image

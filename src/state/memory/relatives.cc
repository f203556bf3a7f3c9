#include "state/memory/relatives.h"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>
#include <utility>

namespace ferry::state::memory {

std::vector<Reading> readings_of(std::span<const sys::Stat* const> processes) {
  std::map<std::pair<std::uint64_t, std::uint64_t>, std::size_t> first_of;
  std::vector<Reading> out(processes.size(), Reading::fast);
  for (std::size_t i = 0; i < processes.size(); ++i) {
    const auto [at, alone] = first_of.emplace(std::pair(processes[i]->start_stack, processes[i]->start_code), i);
    if (!alone) {
      out[at->second] = out[i] = Reading::sharing;
    }
  }
  return out;
}

std::vector<Reading> readings_of(std::span<const std::unique_ptr<DumpTask>> tasks) {
  std::vector<const sys::Stat*> processes;
  std::transform(tasks.begin(), tasks.end(), std::back_inserter(processes),
                 [](const auto& task) { return &task->stat; });
  return readings_of(processes);
}

}  // namespace ferry::state::memory

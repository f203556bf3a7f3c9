#include "state/memory/relatives.h"

#include <map>
#include <tuple>

namespace ferry::state::memory {

std::set<const DumpTask*> relatives_in(const std::vector<std::unique_ptr<DumpTask>>& tasks) {
  using Borders = std::tuple<std::uint64_t, std::uint64_t, std::uint64_t, std::uint64_t>;
  std::map<Borders, const DumpTask*> first_of;
  std::set<const DumpTask*> out;
  for (const auto& task : tasks) {
    if (task->mm == nullptr) {
      continue;
    }
    const pb::MmEntry& mm = *task->mm;
    const auto [at, alone] = first_of.emplace(
        Borders{mm.mm_start_stack(), mm.mm_arg_start(), mm.mm_start_code(), mm.mm_start_brk()}, task.get());
    if (!alone) {
      out.insert(at->second);
      out.insert(task.get());
    }
  }
  return out;
}

}  // namespace ferry::state::memory

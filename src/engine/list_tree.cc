#include "engine/list_tree.h"

#include <fcntl.h>

#include "sys/file.h"
#include "sys/proc.h"

namespace ferry::engine {

std::vector<HostPid> list_tree(HostPid root, sys::TaskLook* look) {
  std::vector<HostPid> out{root};
  for (std::size_t i = 0; i < out.size(); ++i) {
    auto tids = sys::numeric_entries(AT_FDCWD, fmt::format("/proc/{}/task", out[i]));
    if (!tids.has_value()) {
      continue;  // it has just ended
    }
    if (tids->size() >= sys::TaskLook::kWorthIt && look != nullptr && look->ready()) {
      const auto childless = look->childless_threads_of(out[i]);
      std::erase_if(*tids, [&](int tid) { return childless.contains(tid); });
    }
    for (const int tid : *tids) {
      const auto text = sys::read_file(fmt::format("/proc/{}/task/{}/children", out[i], tid));
      const auto children = text.has_value() ? sys::parse_children(*text) : Result<std::vector<HostPid>>();
      if (children.has_value()) {
        out.insert(out.end(), children->begin(), children->end());
      }
    }
  }
  return out;
}

}  // namespace ferry::engine

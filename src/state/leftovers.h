// Restore: what a restore has made on this host that would outlive its processes (cgroups).
//
// Destroyed before keep() was called, it takes everything away again, last made first; the processes of the
// tree have to be gone by then.
#pragma once

#include <functional>
#include <utility>
#include <vector>

namespace ferry::state {

class Leftovers {
 public:
  Leftovers() = default;
  Leftovers(const Leftovers&) = delete;
  Leftovers& operator=(const Leftovers&) = delete;
  ~Leftovers() {
    for (auto undo = undo_.rbegin(); undo != undo_.rend(); ++undo) {
      (*undo)();
    }
  }
  void add(std::function<void()> undo) { undo_.push_back(std::move(undo)); }
  void keep() { undo_.clear(); }

 private:
  std::vector<std::function<void()>> undo_;
};

}  // namespace ferry::state

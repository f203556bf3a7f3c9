#include "tracee/let_go.h"

namespace ferry::tracee {

Result<void> let_go(const std::vector<Process*>& processes, const Deadline& deadline) {
  std::vector<Thread*> ended;
  for (Process* process : processes) {
    for (Thread& thread : process->threads()) {
      auto done = thread.detach();
      if (!done.has_value() && done.error().kind == Kind::gone) {
        ended.push_back(&thread);
      } else if (!done.has_value()) {
        return done;
      }
    }
  }
  return await_end(ended, deadline);
}

}  // namespace ferry::tracee

// Where a checkpoint goes: a directory, or a connection.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "base/error.h"
#include "image/page_sink.h"
#include "image/set.h"
#include "state/dump.h"

namespace ferry::engine {

// Called in this order while the tree is stopped: memory() for every process and pages() for every pagemap,
// images() once, end() once.
// An error of any lets the tree run on as if nothing had been tried.
class Keeper {
 public:
  virtual ~Keeper() = default;
  // Before the tree is stopped: how much private memory its processes hold, in bytes, in the order in which
  // it is likely to come.  An error refuses the checkpoint.
  virtual Result<void> expect(std::span<const std::uint64_t> memory) {
    (void)memory;
    return {};
  }
  // The last call before the tree is stopped, which follows at once.
  virtual Result<void> about_to_stop() { return {}; }
  // What memory() can do without the set: it runs in a thread of its own while the engine looks at the rest of the
  // tree, whose memory nothing touches any more, and has ended before memory() is called.  Empty: there is nothing.
  // The tasks outlive the work; what it may read of them: pids, stat, mappings, descriptors.
  virtual std::function<Result<void>()> ahead_of_memory(std::span<const std::unique_ptr<state::DumpTask>> tasks) {
    (void)tasks;
    return {};
  }
  // The private memory of a task that is stopped.  True if the keeper has it, with its pagemap in the set;
  // false to be given its pages.
  virtual Result<bool> memory(state::DumpTask& task, image::Set& set) {
    (void)task;
    (void)set;
    return false;
  }
  // A place for the pages of one pagemap; destroyed before the next is asked for.
  virtual Result<std::unique_ptr<image::PageSink>> pages(image::Set& set, image::Name pagemap) = 0;
  // The set is complete.
  virtual Result<void> images(const image::Set& set) = 0;
  enum class Verdict {
    as_asked,  // what the options say: kill, leave running, leave stopped
    run_on,    // somebody else decided that this tree goes on living here
  };
  // The last word, after post_dump: what becomes of the tree.  May wait for another host.
  virtual Result<Verdict> end() { return Verdict::as_asked; }
};

}  // namespace ferry::engine

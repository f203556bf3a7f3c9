// The steps of a checkpoint.
#pragma once

#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <utility>
#include <vector>

#include "base/error.h"
#include "engine/caretaker.h"
#include "engine/keeper.h"
#include "engine/options.h"
#include "engine/succession.h"
#include "image/set.h"
#include "lazy/page_supply.h"
#include "state/dump.h"
#include "state/dump_host.h"
#include "state/file_kind.h"
#include "sys/mapping_look.h"
#include "tracee/stop_tree.h"

namespace ferry::engine {

// Everything of one checkpoint.  The members are destroyed in reverse order, so whatever step fails,
// batch areas are unmapped and threads let go, and the freezer gets its state back before they run.
class CheckpointStory {
 public:
  // `listener` and `keeper` have to outlive this.
  CheckpointStory(const DumpOptions& options, Listener& listener, Keeper& keeper, Caretaker caretaker = {})
      : options_(options), listener_(listener), keeper_(keeper), caretaker_(std::move(caretaker)) {}
  CheckpointStory(const CheckpointStory&) = delete;
  CheckpointStory& operator=(const CheckpointStory&) = delete;
  ~CheckpointStory();

  // All steps, from the running tree to its end.  Errors: as checkpoint() in engine/checkpoint.h.
  Result<DumpReport> run();

 private:
  struct Step {
    const char* name;
    Result<void> (CheckpointStory::*run)();
  };

  Result<void> tell(Stage stage);
  Result<void> prepare();
  Result<void> notify_pre_dump() { return tell(Stage::pre_dump); }
  Result<void> stop();
  Result<void> describe_tree();
  Result<void> notify_stopped();
  Result<void> settle_threads();
  Result<void> ask();
  Result<void> give_back();
  Result<void> collect_tasks();
  Result<void> collect_namespaces();
  Result<void> save_memory();
  Result<void> save_images();
  Result<void> notify_complete() { return tell(Stage::post_dump); }
  Result<void> end();

  Result<void> collect_task(state::DumpTask& task);
  Result<void> run_on();
  Result<void> supply_pages();
  Result<void> kill_tree();
  // The part of describing and collecting that only reads procfs, for many threads, while the main thread
  // asks them.
  Result<void> look_at_threads();
  Result<void> join_witness();
  Result<void> join_memory();

  DumpOptions options_;  // with the external resources that the listener adds
  Listener& listener_;
  Keeper& keeper_;
  Caretaker caretaker_;
  DumpReport report_;
  tracee::Freezer freezer_;
  image::Set set_;
  sys::TaskLook look_;
  sys::MappingLook mapping_look_;
  tracee::WaysBack ways_;
  Succession succession_;
  state::FileTable files_;
  state::DumpHost host_;
  lazy::PageSupply supply_;  // of what options.lazy_pages leaves in the tree
  std::vector<tracee::StoppedTask> stopped_;
  std::vector<std::unique_ptr<state::DumpTask>> tasks_;
  std::function<Result<std::unique_ptr<image::PageSink>>(image::Name)> open_pages_ = [this](image::Name pagemap) {
    return keeper_.pages(set_, pagemap);
  };
  state::DumpContext context_{options_, set_, tasks_, files_, open_pages_, host_};
  std::chrono::steady_clock::time_point frozen_since_{};
  std::future<Result<void>> witness_;
  std::future<Result<void>> memory_;  // the keeper's work ahead of it
  bool network_announced_ = false;
  bool let_go_ = false;
};

}  // namespace ferry::engine

// The steps of a restore, told in order by restore() (restore.cc) and, in two parts with a pause between
// them, by make_skeleton() and Twin (twin.cc).
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/error.h"
#include "base/laps.h"
#include "engine/latecomers.h"
#include "engine/options.h"
#include "engine/restore_tree.h"
#include "image/page_store.h"
#include "image/set.h"
#include "state/file_kind.h"
#include "state/inside.h"
#include "state/leftovers.h"
#include "state/memory/inheritance.h"
#include "state/memory/memory.h"
#include "state/memory/staged.h"
#include "state/nested/nested.h"
#include "state/net_gate/net_gate.h"
#include "state/network_lock/network_lock.h"
#include "state/nsids/nsids.h"
#include "state/restore.h"
#include "state/timens/clocks.h"
#include "state/userns/userns.h"
#include "sys/memory.h"
#include "sys/nftables.h"

namespace ferry::engine {

// Everything of one restore.  Until the tree is let go, destroying it kills what was made.
// The steps are to be called in the order in which they stand.
class RestoreStory {
 public:
  // Both have to outlive the story.
  RestoreStory(const RestoreOptions& options, Listener& listener) : options_(options), listener_(listener) {}
  RestoreStory(const RestoreStory&) = delete;
  RestoreStory& operator=(const RestoreStory&) = delete;
  ~RestoreStory();

  // Takes the set and checks that it makes a tree.
  Result<void> read(image::Set set);
  // Root skeleton, emptied, with its namespaces, mounts and place in the cgroups.
  // `controller`: a pidfd of the process that will dress the tree; -1: this one.
  Result<void> make_root_world(int controller);
  // The namespaces beside those of the root, for who takes it.
  std::vector<state::HeldNamespace> give_namespaces() { return nested_.give(set_); }
  Result<void> take_namespaces(const std::vector<state::HeldNamespace>& made) { return nested_.take(context_, made); }
  // Instead of make_root_world: a skeleton that another process made so, seized by seize_root.
  Result<void> take_root(tracee::Thread root, tracee::Area area, std::uint64_t park, int controller_pidfd);
  // All other processes and threads, stopped and empty, but for the memory that they share with who made them.
  // `images_dir`: where the pages are; -1: they are elsewhere, and nothing is shared.
  Result<void> grow(int images_dir);
  // In place of grow(), what goes ahead of time: the processes without their threads, and the private anonymous
  // memory that they had when the set was made.  `buffer`: a directory on tmpfs.
  Result<void> grow_ahead(int buffer);
  // Pages that arrive for what was grown ahead.  Errors: gone (nothing was grown for this process).
  Result<void> write_ahead(NsPid pid, std::span<const sys::Placed> pages);
  Result<void> zero_ahead(NsPid pid, std::uint64_t vaddr, std::uint64_t bytes);
  // Pages of it that are known to be stale.
  Result<void> drop_ahead(NsPid pid, const std::vector<sys::PageRange>& stale);
  [[nodiscard]] bool is_ahead(NsPid pid) const { return ahead_.contains(pid); }
  // In place of take_root() and grow(): takes over what another story grew ahead.  Processes that have come,
  // gone or changed their place in the tree since then are made anew.
  Result<void> take_over(RestoreStory& ahead);
  // What may have changed in the namespaces since the root skeleton was made with them, from `before`.
  Result<void> renew_namespaces(const image::Set& before);
  // Memory, files, attributes.  `images_dir`: where the pages are.  `late`: who brings those that the set says come
  // later, of memory that was grown ahead; has to outlive the story.
  Result<void> dress(int images_dir, Latecomers* late = nullptr);
  // Registers; the batch areas go.
  Result<void> finish_threads();
  // The point of no return.
  Result<void> let_go();
  // let_go() in two halves: all but the end of tracing; and that.  Before the first, outlive_us() makes that the
  // tree is not killed if we end.
  Result<void> outlive_us();
  Result<void> open_up();
  Result<void> detach();
  // A lazy-pages daemon learns that all run.
  Result<void> tell_daemon();

  // What can wait until the tree runs.
  Result<void> clean_up();

  Result<void> tell(Stage stage, bool with_pid = false);
  // Leaves the root skeleton alone in a sleep that only SIGKILL or a tracer ends; it lives on then.
  // Of its descriptors only `keep` stay open.
  Result<void> put_root_to_sleep(std::vector<int> keep);

  state::RestoreContext& context() { return context_; }
  [[nodiscard]] const Layout& layout() const { return layout_; }
  [[nodiscard]] const Laps& laps() const { return laps_; }
  [[nodiscard]] std::uint64_t pages_restored() const { return pages_restored_; }

 private:
  Result<void> lock_ahead();
  Result<void> open_pages(int images_dir);
  Result<void> make_all_threads();
  [[nodiscard]] bool same_processes(const RestoreStory& other) const;
  Result<void> evacuate_children_of_root();
  Result<void> forget_children_of_root();
  Result<void> clear_new_ones();
  Result<std::uint64_t> fill(state::RestoreTask& task);
  Result<std::uint64_t> fill_lazily(state::RestoreTask& task);
  Result<void> await_late(state::RestoreTask& task);
  state::memory::Staged* staged_for(const state::RestoreTask& task);
  Result<void> build_memory();
  Result<void> dress_tasks();
  Result<void> dress_threads(state::RestoreTask& task);
  Result<void> dress_thread(state::RestoreTask& task, state::RestoreThread& thread, tracee::Batch& batch);
  Result<void> side_by_side(const char* what,
                            const std::function<Result<void>(state::RestoreTask&, tracee::Batch&)>& prepare);

  const RestoreOptions& options_;
  Listener& listener_;
  image::Set set_;
  state::Leftovers leftovers_;  // before the tasks, so that it goes after them
  std::vector<std::unique_ptr<state::RestoreTask>> tasks_;
  std::unique_ptr<image::PageStore> pages_;
  std::optional<state::memory::Inheritance> inheritance_;
  Latecomers* late_ = nullptr;
  UniqueFd daemon_;  // who brings the pages that come later, if options say so
  state::Inside inside_;
  state::OpenFiles files_;
  state::Nested nested_;
  state::RestoreContext context_{options_, set_, tasks_, inside_, files_, listener_, nested_, leftovers_};
  state::network_lock::Locks network_lock_;
  state::NamespaceIds namespaces_;
  Layout layout_;
  state::userns::Deputy deputy_;  // if the tree has a user namespace of its own
  std::map<const state::RestoreTask*, state::memory::KernelMappings> kernel_;  // where each task's vDSO is now
  state::net_gate::Gate gate_;                                                 // until clean_up()
  state::timens::Clocks not_before_;  // by our own clocks, lest the tree's go back
  bool ahead_of_time_ = false;        // its namespace's network is shut from the beginning (state/net_gate)
  Laps laps_;
  struct Ahead {
    state::RestoreTask* task;
    state::memory::Staged memory;
  };
  std::map<NsPid, Ahead> ahead_;
  std::uint64_t pages_restored_ = 0;
  bool let_go_ = false;
};

}  // namespace ferry::engine

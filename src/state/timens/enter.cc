// Restore: the time namespaces of a tree beside that of its root.
//
// unshare(2) makes one for the children of who calls it, setns(2) moves the caller, if it is single-threaded, and
// chooses the same for its children.  So who had chosen another namespace than its own makes that one itself, after
// it has moved into its own; one that nobody has chosen is made by the first who is to live in it.  Nobody goes back
// to a namespace that it has left: a tree in a user namespace could not.
#include <fcntl.h>
#include <sched.h>
#include <sys/syscall.h>

#include <algorithm>
#include <map>
#include <vector>

#include "image/proto/inventory.pb.h"
#include "state/nsids/nsids.h"
#include "state/timens/timens.h"
#include "sys/file.h"

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x00000080  // clone3(2), Linux 5.6
#endif

namespace ferry::state::timens {
namespace {

std::uint32_t own(const RestoreTask& task) { return task.ids->time_ns_id(); }
std::uint32_t chosen(const RestoreTask& task) { return task.ids->ferry_time_for_children_ns_id(); }
bool lives(const RestoreTask& task) { return task.mm != nullptr && task.ids != nullptr; }

class Distributor {
 public:
  explicit Distributor(RestoreContext& context) : context_(context), home_(own(context.root())) {}

  Result<void> run() {
    FERRY_TRY(const auto* inventory, context_.set.one<pb::InventoryEntry>({image::Type::inventory, 0}));
    dumper_ = inventory->root_ids().time_ns_id();
    RestoreTask& root = context_.root();
    FERRY_TRY(const std::string text, sys::read_file(fmt::format("/proc/{}/timens_offsets", root.pid)));
    FERRY_TRY(home_offsets_, parse_offsets(text));
    FERRY_TRY(held_[home_], sys::open(fmt::format("/proc/{}/ns/time", root.pid), O_RDONLY));
    for (const auto& task : context_.tasks) {
      if (lives(*task)) {
        waiting_.push_back(task.get());
      }
    }
    while (!waiting_.empty()) {
      const auto ready =
          std::find_if(waiting_.begin(), waiting_.end(), [&](const RestoreTask* task) { return is_ready(*task); });
      if (ready == waiting_.end()) {
        return fail(Kind::corrupt, "nobody can have made time namespace {}, in which pid {} lives",
                    own(*waiting_.front()), waiting_.front()->ns_pid());
      }
      RestoreTask& task = **ready;
      waiting_.erase(ready);
      FERRY_CHECK(place(task).during("time namespace of pid {}", task.ns_pid()));
    }
    return {};
  }

 private:
  // Not before the one who has chosen its namespace has made it.
  [[nodiscard]] bool is_ready(const RestoreTask& task) const {
    return held_.contains(own(task)) || std::none_of(waiting_.begin(), waiting_.end(), [&](const RestoreTask* other) {
             return chosen(*other) == own(task);
           });
  }

  Result<void> place(RestoreTask& task) {
    if (!held_.contains(own(task))) {
      FERRY_CHECK(make(task, own(task)));
    }
    if (own(task) != home_) {
      tracee::Batch move;
      const tracee::Value ns = move.must("pidfd_getfd(time namespace)", SYS_pidfd_getfd,
                                         {task.controller_pidfd, held_.at(own(task)).get(), 0});
      move.must("setns(CLONE_NEWTIME)", SYS_setns, {ns, CLONE_NEWTIME});
      move.must("close", SYS_close, {ns});
      FERRY_CHECK(task.process.run(task.leader(), move));
    }
    if (chosen(task) == 0) {
      return {};
    }
    if (held_.contains(chosen(task))) {
      return fail(Kind::corrupt, "several processes have chosen it");
    }
    return make(task, chosen(task));
  }

  // For the children of a task, which need not be there yet.
  Result<void> make(RestoreTask& task, std::uint32_t ns) {
    const pb::TimensEntry* const here = entry_of(context_.set, home_, dumper_);
    const pb::TimensEntry* const there = entry_of(context_.set, ns, dumper_);
    if (here == nullptr || there == nullptr) {
      return fail(Kind::corrupt, "the set does not have the clocks of time namespace {}",
                  there == nullptr ? ns : home_);
    }
    tracee::Batch leave;
    leave.must("unshare(CLONE_NEWTIME)", SYS_unshare, {CLONE_NEWTIME});
    FERRY_CHECK(task.process.run(task.leader(), leave));
    const Clocks offsets = home_offsets_ + readings_of(*there) - readings_of(*here);
    FERRY_CHECK(sys::write_file(fmt::format("/proc/{}/timens_offsets", task.pid), format_offsets(offsets)));
    FERRY_TRY(held_[ns], sys::open(fmt::format("/proc/{}/ns/time_for_children", task.pid), O_RDONLY));
    return {};
  }

  RestoreContext& context_;
  const std::uint32_t home_;
  std::uint32_t dumper_ = 0;
  Clocks home_offsets_;
  std::map<std::uint32_t, UniqueFd> held_;
  std::vector<RestoreTask*> waiting_;
};

}  // namespace

Result<void> enter(RestoreContext& context) {
  const RestoreTask& root = context.root();
  const bool several = std::any_of(context.tasks.begin(), context.tasks.end(), [&](const auto& task) {
    return lives(*task) && (own(*task) != own(root) || chosen(*task) != 0);
  });
  return several ? Distributor(context).run() : Result<void>();
}

}  // namespace ferry::state::timens

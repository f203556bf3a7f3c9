// Restore ahead of time: first the namespaces, mounts and an empty, stopped root process, made by the
// `criu` that the container runtime calls; later the rest, by a receiver outside of the container.
//
// Between the two the root task (the "root skeleton") sleeps in pause(2) with all signals blocked,
// traced by nobody, holding the descriptors that the runtime handed in and a pidfd of the receiver.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/laps.h"
#include "engine/latecomers.h"
#include "engine/options.h"
#include "image/set.h"
#include "state/nested/nested.h"
#include "sys/memory.h"

namespace ferry::engine {

// What criu has to tell the receiver about the skeleton it made; travels over a local socket as JSON.
struct Skeleton {
  HostPid root;
  std::uint64_t area_base = 0, area_size = 0;  // the batch area, mapped
  std::uint64_t park = 0;
  int receiver_pidfd = -1;             // number in the skeleton's table
  std::vector<InheritFd> inherit_fds;  // numbers in the skeleton's table
  std::vector<ExternalMount> external_mounts;
  std::vector<CgroupRoot> cgroup_roots;
  std::string root_directory;
  std::vector<state::HeldNamespace> namespaces;  // beside those of the root; travel as descriptors
};
std::string encode_skeleton(const Skeleton& skeleton);
Result<Skeleton> decode_skeleton(std::string_view json);

// By criu: makes the skeleton from a set of which no pages are needed (tasks, namespaces, mounts and
// terminals are looked at), tells the listener all stages as a whole restore would, and lets the root go
// into its sleep.  `receiver`: a pidfd of the process that will own it.  On any error nothing is left.
Result<Skeleton> make_skeleton(image::Set set, const RestoreOptions& options, Listener& listener, int receiver);

// By the receiver: owns the skeleton from adopt() on; the tree dies with the object (and with the
// process) until resume() has succeeded.
class Twin {
 public:
  // `look`: the set that the skeleton was made from; has to outlive the object.
  static Result<Twin> adopt(Skeleton skeleton, const image::Set& look);
  Twin(Twin&&) noexcept;
  Twin& operator=(Twin&&) noexcept;
  ~Twin();
  // What can be made before the tree is stopped, from the look at it while it ran: processes, and the private
  // anonymous memory they had.  `buffer`: an open directory on tmpfs.  Then pages may arrive, each as
  // often as it changes; those of other memory are kept in `buffer`.
  Result<void> grow_ahead(int buffer);
  [[nodiscard]] bool is_ahead(NsPid pid) const;
  // Several threads may bring pages at the same time; none of a page twice at once.
  Result<void> write_ahead(NsPid pid, std::span<const sys::Placed> pages);
  Result<void> zero_ahead(NsPid pid, std::uint64_t vaddr, std::uint64_t bytes);
  // What has arrived of these pages is stale.  By the thread that grew, while nobody brings pages.
  Result<void> drop_ahead(NsPid pid, const std::vector<sys::PageRange>& stale);
  // Descriptors of this process that the tree is made with, under a key that a room knows.  They stay the caller's.
  void hand_in(const std::vector<InheritFd>& descriptors);
  // The whole tree as the images in `images_dir` (an open directory, on tmpfs during a move) say:
  // everything but the last step, still stopped.  The directory may go afterwards.  `late`: who brings the pages that
  // the images leave for later; has to live as long as this.
  Result<void> grow(int images_dir, Latecomers* late = nullptr);
  // After grow(): from now on the tree goes on when this process ends, instead of dying with it.
  Result<void> outlive_us();
  // Point of no return.
  Result<RestoreReport> resume();
  // The same by a copy of this process (fork(2)) after its tracer has ended: the kernel has let the tree go then.
  Result<void> resume_untraced();
  // After resume(), when there is time.
  Result<void> clean_up();
  // What the steps of grow() took.
  [[nodiscard]] std::vector<Lap> laps() const;
  // Whether the root skeleton still lives (its user may have stopped the container).
  [[nodiscard]] bool alive() const;

 private:
  struct State;
  explicit Twin(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace ferry::engine

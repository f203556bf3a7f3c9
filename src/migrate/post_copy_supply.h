// The source's memory after its tree was given away: the tree stands frozen, and whoever runs it now fetches its pages.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "base/error.h"
#include "base/ids.h"
#include "base/unique_fd.h"
#include "migrate/link.h"
#include "migrate/page_batch.h"

namespace ferry::migrate {

class PostCopySupply {
 public:
  // `pack`: with zstd, where that makes it smaller.
  explicit PostCopySupply(bool pack) : pack_(pack) {}
  // The processes of a frozen cgroup, for whoever takes the place of the ferry that froze it.
  // Errors: gone, if there is none.
  static Result<std::unique_ptr<PostCopySupply>> of_frozen(const std::string& cgroup);

  // A process that stands still until nobody asks any more.  `memory`: its /proc/PID/mem.
  void offer(NsPid name, HostPid pid, std::shared_ptr<const UniqueFd> memory);

  // Answers questions of the destination until it says that it has everything.  Several threads may do that, each with
  // a connection of its own.  Errors: of this connection, after which another one may do.
  Result<void> serve(Link& link) const;
  [[nodiscard]] std::uint64_t sent_bytes() const { return sent_bytes_; }

 private:
  struct Process {
    HostPid pid;
    std::shared_ptr<const UniqueFd> memory;
  };
  Result<void> obey(Link& link) const;
  Result<void> answer(NsPid name, std::uint64_t vaddr, std::uint64_t bytes, Link& link, PageBatch& batch) const;

  bool pack_;
  mutable std::mutex lock_;
  std::map<NsPid, Process> processes_;
  mutable std::atomic<std::uint64_t> sent_bytes_{0};
};

}  // namespace ferry::migrate

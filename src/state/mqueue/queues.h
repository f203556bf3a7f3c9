// The POSIX message queues of the tree's ipc namespace, as a checkpoint sees them.
// Source: mq_overview(7), ipc_namespaces(7).
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <set>
#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"
#include "state/inside.h"

namespace ferry::pb {
class FerryMessageQueue;
class IpcVarEntry;
}  // namespace ferry::pb

namespace ferry::state {

struct DumpContext;
struct FdProbe;

namespace mqueue {

class KernelQueues;

class Queues {
 public:
  Queues();
  ~Queues();
  // Before the freeze, with a thread that has joined the namespace, and again if the tree has moved to another.  What
  // reading queues takes is made ready if there are any; if it cannot be, collect() says so.
  Result<void> open(Inside& inside);
  // What reading takes, from somebody who has made it ready already.
  void use(std::shared_ptr<const KernelQueues> reader);
  // In the freeze: of another ipc namespace, which `inside` has joined.  Errors: unsupported, if it has a queue.
  Result<void> check_other(Inside& inside);
  // Whether a mount shows the queues of such a namespace.  `device`: as mountinfo has it, major << 20 | minor.
  [[nodiscard]] bool is_of_other(std::uint32_t device) const { return others_.contains(device); }

  // An open file of a queue, number `id` of files.img.
  // Errors: unsupported (the queue is another namespace's; it was opened on a mount that only some tasks see).
  Result<void> add(const FdProbe& probe, DumpContext& context, std::uint32_t id);
  // All queues, with their messages.  Nothing is taken out of them.
  // Errors: unsupported, naming a queue and what of it cannot be carried.
  Result<void> collect(DumpContext& context, pb::IpcVarEntry& out);

 private:
  struct File;
  Result<const KernelQueues*> reader();
  Result<void> describe(DumpContext& context, int queue, const std::string& name, pb::FerryMessageQueue& out);

  UniqueFd mount_;
  dev_t device_ = 0;
  std::set<std::uint32_t> others_;
  std::vector<File> files_;
  std::shared_ptr<const KernelQueues> reader_;
};

}  // namespace mqueue
}  // namespace ferry::state

// The objects of System V IPC.  All functions are for a thread that has joined the namespace.
#pragma once

#include <vector>

#include "base/error.h"
#include "image/proto/ipc.pb.h"
#include "image/set.h"

namespace ferry::state::ipc {

struct Segment {
  pb::IpcShmEntry entry;
  std::string content;
  std::uint64_t attached = 0;  // how many mappings there are of it
};
struct Semaphores {
  pb::IpcSemEntry entry;
  std::string values;  // 16 bits each
};
struct Queue {
  pb::IpcMsgEntry entry;
  struct Message {
    pb::IpcMsg head;
    std::string text;
  };
  std::vector<Message> messages;
};

Result<std::vector<Segment>> read_segments();
Result<std::vector<Semaphores>> read_semaphores();
// Messages are copied, not taken (msgop(2), MSG_COPY).
Result<std::vector<Queue>> read_queues();

// `sysctl`: /proc/sys, where the next object's number is chosen.
Result<void> make_segment(int sysctl, const pb::IpcShmEntry& entry);
// Attaches a segment here, for filling it; undone by the destructor.
class Attached {
 public:
  static Result<Attached> segment(std::uint32_t id, bool read_only);
  Attached(Attached&& other) noexcept : address_(std::exchange(other.address_, nullptr)) {}
  Attached& operator=(Attached&&) = delete;
  ~Attached();
  [[nodiscard]] void* address() const { return address_; }

 private:
  explicit Attached(void* address) : address_(address) {}
  void* address_;
};
Result<void> make_semaphores(int sysctl, const Semaphores& semaphores);
Result<void> make_queue(int sysctl, const Queue& queue);
Result<void> remove_segment(std::uint32_t id);
// Every object of the namespace.
Result<void> remove_all();

}  // namespace ferry::state::ipc

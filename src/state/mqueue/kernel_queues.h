// What the kernel holds of a POSIX message queue: mq_receive(3) takes a message out of its queue, and nothing else
// shows one.
//
// Taking all out and sending them again was decided against: a message that is sent to an empty queue uses up a
// registered notification, a sender outside of the tree that waits for room would get in between, and a kill in the
// middle loses them.  So they are read where the kernel keeps them (ipc/mqueue.c, ipc/msgutil.c), as the other parts of
// a checkpoint that would cost too much or disturb are (sys/task_look.h).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "sys/btf.h"
#include "sys/kernel_memory.h"

namespace ferry::state::mqueue {

struct Message {
  std::uint32_t priority = 0;
  std::string text;
};

struct Notice {
  std::uint64_t pid = 0;     // who has registered it, as our pid namespace knows it; 0: it does not
  std::uint32_t method = 0;  // SIGEV_*
  std::uint32_t signal = 0;
  std::uint64_t value = 0;
};

struct Content {
  std::uint64_t max_messages = 0, message_size = 0;
  std::vector<Message> messages;  // in the order in which they are received
  std::optional<Notice> notice;
};

class KernelQueues {
 public:
  // Proves itself on a queue of our own, in an ipc namespace of its own.
  // Errors: unsupported or denied, where this kernel does not show its memory or not to us, or has other queues than
  // those that are understood here.
  static Result<KernelQueues> open();

  // `queue`: a descriptor of ours.  The tree is stopped.
  // Errors: os (the queue changed meanwhile: somebody outside of the tree uses it).
  [[nodiscard]] Result<Content> read(int queue) const;

 private:
  // Offsets of fields, of structures of that size.
  struct Layout {
    std::uint64_t info_size, inode, ino, tree, max_messages, message_size, current, bytes;
    std::uint64_t owner, method, signal, value;
    std::uint64_t node_left, node_right, node_list, node_priority, node_size;
    std::uint64_t message_type, message_length, message_next, message_header, piece_header;
    std::uint64_t pid_level, pid_numbers, pid_number, pid_number_size, task_pid;
    std::uint64_t task_files, files_table, table_files, file_inode;
  };
  struct Tally {
    std::uint64_t messages = 0, bytes = 0;  // that the queue says it holds
  };
  KernelQueues(sys::KernelMemory memory, const Layout& layout) : memory_(std::move(memory)), layout_(layout) {}
  static Result<Layout> learn(const sys::Btf& btf);
  [[nodiscard]] Result<void> prove() const;
  [[nodiscard]] Result<std::uint64_t> inode_of(int fd) const;
  [[nodiscard]] Result<std::vector<Message>> walk(std::uint64_t root, const Tally& tally) const;
  [[nodiscard]] Result<Message> message(std::uint64_t at, std::uint64_t most) const;
  [[nodiscard]] Result<std::uint64_t> number_of(std::uint64_t pid) const;
  [[nodiscard]] Result<std::vector<std::byte>> structure(std::uint64_t at, std::uint64_t size) const;

  sys::KernelMemory memory_;
  Layout layout_;
};

}  // namespace ferry::state::mqueue

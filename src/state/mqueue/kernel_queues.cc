#include "state/mqueue/kernel_queues.h"

#include <fcntl.h>
#include <mqueue.h>
#include <sched.h>

#include <algorithm>
#include <cstring>
#include <future>
#include <thread>

#include "base/unique_fd.h"
#include "state/mqueue/account.h"
#include "sys/file.h"

namespace ferry::state::mqueue {
namespace {

constexpr std::uint64_t kPage = 4096;  // a message is kept in pieces, none of them larger (ipc/msgutil.c)

template <class T>
T field(const std::vector<std::byte>& bytes, std::uint64_t offset) {
  T out{};
  std::memcpy(&out, bytes.data() + offset, sizeof out);
  return out;
}

std::uint64_t pointer(const std::vector<std::byte>& bytes, std::uint64_t offset) {
  return field<std::uint64_t>(bytes, offset);
}

Result<void> changed() {
  return fail(Kind::os, "its messages changed while they were read: somebody outside of the tree uses it");
}

}  // namespace

Result<KernelQueues> KernelQueues::open() {
  FERRY_TRY(const sys::Btf btf, sys::Btf::of_kernel());
  FERRY_TRY(const Layout layout, learn(btf));
  FERRY_TRY(sys::KernelMemory memory, sys::KernelMemory::open());
  KernelQueues out(std::move(memory), layout);
  FERRY_CHECK(out.prove().during("reading a message queue of our own"));
  return out;
}

Result<KernelQueues::Layout> KernelQueues::learn(const sys::Btf& btf) {
  struct Wanted {
    const char* structure;
    const char* field;  // nullptr: how large the structure is
    std::uint64_t Layout::*to;
  };
  static constexpr Wanted kWanted[] = {
      {"mqueue_inode_info", nullptr, &Layout::info_size},
      {"mqueue_inode_info", "vfs_inode", &Layout::inode},
      {"mqueue_inode_info", "vfs_inode.i_ino", &Layout::ino},
      {"mqueue_inode_info", "msg_tree.rb_node", &Layout::tree},
      {"mqueue_inode_info", "attr.mq_maxmsg", &Layout::max_messages},
      {"mqueue_inode_info", "attr.mq_msgsize", &Layout::message_size},
      {"mqueue_inode_info", "attr.mq_curmsgs", &Layout::current},
      {"mqueue_inode_info", "qsize", &Layout::bytes},
      {"mqueue_inode_info", "notify_owner", &Layout::owner},
      {"mqueue_inode_info", "notify.sigev_notify", &Layout::method},
      {"mqueue_inode_info", "notify.sigev_signo", &Layout::signal},
      {"mqueue_inode_info", "notify.sigev_value", &Layout::value},
      {"posix_msg_tree_node", "rb_node.rb_left", &Layout::node_left},
      {"posix_msg_tree_node", "rb_node.rb_right", &Layout::node_right},
      {"posix_msg_tree_node", "msg_list", &Layout::node_list},
      {"posix_msg_tree_node", "priority", &Layout::node_priority},
      {"posix_msg_tree_node", nullptr, &Layout::node_size},
      {"msg_msg", "m_type", &Layout::message_type},
      {"msg_msg", "m_ts", &Layout::message_length},
      {"msg_msg", "next", &Layout::message_next},
      {"msg_msg", nullptr, &Layout::message_header},
      {"msg_msgseg", nullptr, &Layout::piece_header},
      {"pid", "level", &Layout::pid_level},
      {"pid", "numbers", &Layout::pid_numbers},
      {"upid", "nr", &Layout::pid_number},
      {"upid", nullptr, &Layout::pid_number_size},
      {"task_struct", "thread_pid", &Layout::task_pid},
      {"task_struct", "files", &Layout::task_files},
      {"files_struct", "fdt", &Layout::files_table},
      {"fdtable", "fd", &Layout::table_files},
      {"file", "f_inode", &Layout::file_inode},
  };
  Layout out{};
  for (const Wanted& w : kWanted) {
    FERRY_TRY(const std::uint32_t type, btf.structure(w.structure));
    if (w.field == nullptr) {
      out.*w.to = btf.size_of(type);
      continue;
    }
    FERRY_TRY(const sys::Btf::Field found, btf.field(type, w.field));
    out.*w.to = found.offset;
  }
  // A list goes from the first member of one message to that of the next, and nodes of a tree likewise.
  for (const auto& [name, first] :
       {std::pair{"msg_msg", "m_list"}, std::pair{"posix_msg_tree_node", "rb_node"}, std::pair{"msg_msgseg", "next"}}) {
    FERRY_TRY(const std::uint32_t type, btf.structure(name));
    FERRY_TRY(const sys::Btf::Field found, btf.field(type, first));
    if (found.offset != 0) {
      return fail(Kind::unsupported, "this kernel's {} begins with something else than {}", name, first);
    }
  }
  return out;
}

Result<void> KernelQueues::prove() const {
  FERRY_CHECK(raise_limit());
  // As large as may be by default (mq_overview(7)): in three pieces.
  constexpr std::size_t kLargest = 8192;
  const std::vector<Message> sent = {{7, std::string(kLargest, 'l')}, {7, "second"}, {3, ""}, {0, "last"}};
  std::promise<Result<Content>> promise;
  auto answer = promise.get_future();
  // unshare(2) is of one thread; where that has ended, nothing is left.
  std::jthread([&] {
    const auto look = [&]() -> Result<Content> {
      if (::unshare(CLONE_NEWIPC) != 0) {
        return sys_fail("unshare(CLONE_NEWIPC)");
      }
      mq_attr attributes{};
      attributes.mq_maxmsg = static_cast<long>(sent.size());
      attributes.mq_msgsize = kLargest;
      const UniqueFd queue(::mq_open("/ferry", O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600, &attributes));
      if (!queue) {
        return sys_fail("mq_open(/ferry)");
      }
      for (const std::size_t i : {3U, 0U, 2U, 1U}) {
        if (::mq_send(queue.get(), sent[i].text.data(), sent[i].text.size(), sent[i].priority) != 0) {
          return sys_fail("mq_send(/ferry)");
        }
      }
      return read(queue.get());
    };
    promise.set_value(look());
  }).join();
  FERRY_TRY(const Content content, answer.get());
  if (!std::equal(sent.begin(), sent.end(), content.messages.begin(), content.messages.end(),
                  [](const Message& a, const Message& b) { return a.priority == b.priority && a.text == b.text; })) {
    return fail(Kind::unsupported, "this kernel keeps messages in another way than is known here");
  }
  return {};
}

Result<std::vector<std::byte>> KernelQueues::structure(std::uint64_t at, std::uint64_t size) const {
  std::vector<std::byte> out(size);
  FERRY_CHECK(memory_.read(at, out));
  return out;
}

Result<Content> KernelQueues::read(int queue) const {
  FERRY_TRY(const auto st, sys::stat_fd(queue, "a message queue"));
  FERRY_TRY(const std::uint64_t inode, inode_of(queue));
  FERRY_TRY(const auto info, structure(inode - layout_.inode, layout_.info_size));
  if (pointer(info, layout_.ino) != st.st_ino) {
    return fail(Kind::unsupported, "this kernel keeps its message queues elsewhere than is known here");
  }
  Content out;
  out.max_messages = pointer(info, layout_.max_messages);
  out.message_size = pointer(info, layout_.message_size);
  const Tally tally{pointer(info, layout_.current), pointer(info, layout_.bytes)};
  FERRY_TRY(out.messages, walk(pointer(info, layout_.tree), tally));
  for (const Message& m : out.messages) {
    if (m.text.size() > out.message_size) {
      FERRY_CHECK(changed());
    }
  }
  if (const std::uint64_t owner = pointer(info, layout_.owner); owner != 0) {
    Notice notice;
    FERRY_TRY(notice.pid, number_of(owner));
    notice.method = field<std::uint32_t>(info, layout_.method);
    notice.signal = field<std::uint32_t>(info, layout_.signal);
    notice.value = pointer(info, layout_.value);
    out.notice = notice;
  }
  return out;
}

Result<std::uint64_t> KernelQueues::inode_of(int fd) const {
  FERRY_TRY(const std::uint64_t task, memory_.current_task());
  std::uint64_t at = task;
  for (const std::uint64_t offset : {layout_.task_files, layout_.files_table, layout_.table_files}) {
    FERRY_TRY(at, memory_.read<std::uint64_t>(at + offset));
  }
  FERRY_TRY(const auto file, memory_.read<std::uint64_t>(at + static_cast<std::uint64_t>(fd) * sizeof(std::uint64_t)));
  return memory_.read<std::uint64_t>(file + layout_.file_inode);
}

// A tree of priorities, each with the list of its messages; the highest is received first, and of one priority the
// oldest (mq_receive(3)).
Result<std::vector<Message>> KernelQueues::walk(std::uint64_t root, const Tally& tally) const {
  std::vector<Message> out;
  std::uint64_t bytes = 0;
  std::vector<std::pair<std::uint64_t, std::vector<std::byte>>> above;  // nodes whose right side is being walked
  for (std::uint64_t at = root; at != 0 || !above.empty();) {
    if (at != 0) {
      if (above.size() > tally.messages) {
        FERRY_CHECK(changed());
      }
      FERRY_TRY(auto node, structure(at, layout_.node_size));
      const std::uint64_t right = pointer(node, layout_.node_right);
      above.emplace_back(at, std::move(node));
      at = right;
      continue;
    }
    const auto [here, node] = std::move(above.back());
    above.pop_back();
    const std::uint64_t head = here + layout_.node_list;
    for (std::uint64_t next = pointer(node, layout_.node_list); next != head;) {
      if (out.size() == tally.messages) {
        FERRY_CHECK(changed());
      }
      FERRY_TRY(Message found, message(next, tally.bytes));
      if (found.priority != field<std::uint32_t>(node, layout_.node_priority)) {
        FERRY_CHECK(changed());
      }
      bytes += found.text.size();
      out.push_back(std::move(found));
      FERRY_TRY(next, memory_.read<std::uint64_t>(next));
    }
    at = pointer(node, layout_.node_left);
  }
  if (out.size() != tally.messages || bytes != tally.bytes) {
    FERRY_CHECK(changed());
  }
  return out;
}

Result<Message> KernelQueues::message(std::uint64_t at, std::uint64_t most) const {
  FERRY_TRY(const auto head, structure(at, layout_.message_header));
  Message out;
  out.priority = static_cast<std::uint32_t>(pointer(head, layout_.message_type));
  const std::uint64_t length = pointer(head, layout_.message_length);
  if (length > most) {
    FERRY_CHECK(changed());
  }
  out.text.resize(length);
  std::uint64_t header = layout_.message_header, next = pointer(head, layout_.message_next);
  for (std::uint64_t done = 0;;) {
    const std::uint64_t size = std::min(length - done, kPage - header);
    FERRY_CHECK(memory_.read(at + header, std::as_writable_bytes(std::span(out.text)).subspan(done, size)));
    done += size;
    if (done == length) {
      return out;
    }
    if (next == 0) {
      FERRY_CHECK(changed());
    }
    at = next;
    header = layout_.piece_header;
    FERRY_TRY(next, memory_.read<std::uint64_t>(at));
  }
}

// A process has a number in each pid namespace from the first down to its own; ours is the last of our own task.
Result<std::uint64_t> KernelQueues::number_of(std::uint64_t pid) const {
  FERRY_TRY(const std::uint64_t task, memory_.current_task());
  FERRY_TRY(const auto own, memory_.read<std::uint64_t>(task + layout_.task_pid));
  FERRY_TRY(const auto our_level, memory_.read<std::uint32_t>(own + layout_.pid_level));
  FERRY_TRY(const auto its_level, memory_.read<std::uint32_t>(pid + layout_.pid_level));
  if (its_level < our_level) {
    return 0;
  }
  const std::uint64_t number = pid + layout_.pid_numbers + our_level * layout_.pid_number_size + layout_.pid_number;
  return memory_.read<std::uint32_t>(number);
}

}  // namespace ferry::state::mqueue

// The kinds of open files that ferry carries.  A new kind is a folder of its own and a line here.
#include "state/bpf_map/bpf_map.h"
#include "state/epoll/epoll.h"
#include "state/eventfd/eventfd.h"
#include "state/fanotify/fanotify.h"
#include "state/fifo/fifo.h"
#include "state/file_kind.h"
#include "state/files/regular.h"
#include "state/inet_socket/inet_socket.h"
#include "state/inotify/inotify.h"
#include "state/io_uring/io_uring.h"
#include "state/memfd/memfd.h"
#include "state/mqueue/mqueue.h"
#include "state/netlink_socket/netlink_socket.h"
#include "state/ns_file/ns_file.h"
#include "state/packet_socket/packet_socket.h"
#include "state/pidfd/pidfd.h"
#include "state/pipe/pipe.h"
#include "state/signalfd/signalfd.h"
#include "state/timerfd/timerfd.h"
#include "state/tty/tty.h"
#include "state/tun/tun.h"
#include "state/unix_socket/unix_socket.h"

namespace ferry::state {

std::vector<std::unique_ptr<FileKind>> make_file_kinds() {
  std::vector<std::unique_ptr<FileKind>> kinds;
  // First: its queues may hold descriptors of any kind, which have to be known when those finish.
  kinds.push_back(make_unix_socket_kind());
  kinds.push_back(make_inet_socket_kind());
  kinds.push_back(make_netlink_socket_kind());
  kinds.push_back(make_packet_socket_kind());
  kinds.push_back(make_pipe_kind());
  kinds.push_back(make_fifo_kind());
  kinds.push_back(make_eventfd_kind());
  kinds.push_back(make_epoll_kind());
  kinds.push_back(make_timerfd_kind());
  kinds.push_back(make_signalfd_kind());
  kinds.push_back(make_memfd_kind());
  kinds.push_back(make_ns_file_kind());
  kinds.push_back(make_pidfd_kind());
  kinds.push_back(make_inotify_kind());
  kinds.push_back(make_fanotify_kind());
  kinds.push_back(make_bpf_map_kind());
  kinds.push_back(make_io_uring_kind());
  kinds.push_back(make_tty_kind());
  kinds.push_back(make_tun_kind());
  kinds.push_back(make_mqueue_kind());
  kinds.push_back(make_regular_file_kind());  // last: takes what has a path and is none of the others
  return kinds;
}

}  // namespace ferry::state

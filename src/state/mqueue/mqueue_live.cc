#include <errno.h>
#include <fcntl.h>
#include <mqueue.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "live/child.h"
#include "live/live.h"

namespace ferry::live {
namespace {

constexpr const char* kLimits = "/proc/sys/fs/mqueue/";

struct Received {
  std::string text;
  unsigned priority = 0;
  auto operator<=>(const Received&) const = default;
};

mqd_t make_queue(const char* name, long messages, long size, int flags = 0) {
  mq_attr attributes{};
  attributes.mq_maxmsg = messages;
  attributes.mq_msgsize = size;
  return ::mq_open(name, O_RDWR | O_CREAT | O_EXCL | flags, 0600, &attributes);
}

void send(mqd_t queue, const std::string& text, unsigned priority = 0) {
  EXPECT_EQ(::mq_send(queue, text.data(), text.size(), priority), 0) << std::strerror(errno);
}

// Everything that is in it, with a deadline that has passed: nothing is waited for.
std::vector<Received> receive_all(mqd_t queue) {
  std::vector<Received> out;
  mq_attr attributes{};
  EXPECT_EQ(::mq_getattr(queue, &attributes), 0);
  std::string room(static_cast<std::size_t>(attributes.mq_msgsize), '\0');
  const timespec past{1, 0};
  for (;;) {
    unsigned priority = 0;
    const ssize_t n = ::mq_timedreceive(queue, room.data(), room.size(), &priority, &past);
    if (n < 0) {
      EXPECT_TRUE(errno == ETIMEDOUT || errno == EAGAIN) << std::strerror(errno);
      return out;
    }
    out.push_back({room.substr(0, static_cast<std::size_t>(n)), priority});
  }
}

void write_limit(const char* name, int value) {
  std::ofstream out(std::string(kLimits) + name);
  out << value << std::endl;
  ASSERT_TRUE(out.good()) << name;
}

int read_limit(const char* name) {
  std::ifstream in(std::string(kLimits) + name);
  int out = 0;
  in >> out;
  return out;
}

LIVE_TEST(Mqueue, KeepsMessagesInTheirOrder) {
  ASSERT_EQ(::unshare(CLONE_NEWIPC), 0);
  const mqd_t queue = make_queue("/orders", 9, 8192, O_NONBLOCK);
  ASSERT_GE(queue, 0) << std::strerror(errno);
  const mqd_t empty = make_queue("/nothing yet", 3, 100);
  ASSERT_GE(empty, 0) << std::strerror(errno);
  const std::string large(8192, 'x'), one_page(4048, 'y'), a_byte_more(4049, 'z');
  send(queue, "first of 3", 3);
  send(queue, large, 0);
  send(queue, "", 7);
  send(queue, std::string("a\0b", 3), 3);
  send(queue, a_byte_more, 32767);
  send(queue, one_page, 3);
  send(queue, "first of 3", 3);
  checkpoint_here();
  const std::vector<Received> expected = {
      {a_byte_more, 32767}, {"", 7},           {"first of 3", 3}, {std::string("a\0b", 3), 3},
      {one_page, 3},        {"first of 3", 3}, {large, 0},
  };
  EXPECT_EQ(receive_all(queue), expected);
  EXPECT_EQ(receive_all(empty), std::vector<Received>());
  mq_attr attributes{};
  EXPECT_EQ(::mq_getattr(queue, &attributes), 0);
  EXPECT_EQ(attributes.mq_maxmsg, 9);
  EXPECT_EQ(attributes.mq_msgsize, 8192);
  EXPECT_EQ(attributes.mq_flags, O_NONBLOCK);
  EXPECT_EQ(::mq_getattr(empty, &attributes), 0);
  EXPECT_EQ(attributes.mq_maxmsg, 3);
  EXPECT_EQ(attributes.mq_flags, 0);
}

LIVE_TEST(Mqueue, KeepsAFullQueueFull) {
  ASSERT_EQ(::unshare(CLONE_NEWIPC), 0);
  const mqd_t queue = make_queue("/full", 4, 16, O_NONBLOCK);
  ASSERT_GE(queue, 0) << std::strerror(errno);
  for (const char* text : {"1", "2", "3", "4"}) {
    send(queue, text);
  }
  checkpoint_here();
  EXPECT_EQ(::mq_send(queue, "5", 1, 0), -1);
  EXPECT_EQ(errno, EAGAIN);
  const std::vector<Received> expected = {{"1", 0}, {"2", 0}, {"3", 0}, {"4", 0}};
  EXPECT_EQ(receive_all(queue), expected);
}

// Of a queue that nobody has open as well.
LIVE_TEST(Mqueue, KeepsOwnerModeAndTimes) {
  ASSERT_EQ(::unshare(CLONE_NEWIPC), 0);
  const mqd_t queue = make_queue("/closed", 2, 16);
  ASSERT_GE(queue, 0) << std::strerror(errno);
  send(queue, "kept");
  ASSERT_EQ(::fchown(queue, 5, 7), 0);
  ASSERT_EQ(::fchmod(queue, 0642), 0);
  const timespec times[] = {{1'000'000'000, 1}, {1'100'000'000, 2}};
  ASSERT_EQ(::futimens(queue, times), 0);
  ASSERT_EQ(::mq_close(queue), 0);
  checkpoint_here();
  const mqd_t again = ::mq_open("/closed", O_RDONLY);
  ASSERT_GE(again, 0) << std::strerror(errno);
  struct stat st {};
  ASSERT_EQ(::fstat(again, &st), 0);
  EXPECT_EQ(st.st_uid, 5U);
  EXPECT_EQ(st.st_gid, 7U);
  EXPECT_EQ(st.st_mode & 07777U, 0642U);
  EXPECT_EQ(st.st_atim.tv_sec, times[0].tv_sec);
  EXPECT_EQ(st.st_mtim.tv_sec, times[1].tv_sec);
  EXPECT_EQ(receive_all(again), std::vector<Received>({{"kept", 0}}));
}

// Limits count when a queue is made.
LIVE_TEST(Mqueue, LargerThanTheLimitsOfItsNamespace) {
  ASSERT_EQ(::unshare(CLONE_NEWIPC), 0);
  write_limit("msg_max", 40);
  write_limit("msgsize_max", 10'000);
  const mqd_t queue = make_queue("/large", 25, 9'000);
  ASSERT_GE(queue, 0) << std::strerror(errno);
  write_limit("msg_max", 3);
  write_limit("msgsize_max", 300);
  write_limit("queues_max", 0);
  checkpoint_here();
  mq_attr attributes{};
  EXPECT_EQ(::mq_getattr(queue, &attributes), 0);
  EXPECT_EQ(attributes.mq_maxmsg, 25);
  EXPECT_EQ(attributes.mq_msgsize, 9'000);
  EXPECT_EQ(read_limit("msg_max"), 3);
  EXPECT_EQ(read_limit("msgsize_max"), 300);
  EXPECT_EQ(read_limit("queues_max"), 0);
}

LIVE_TEST(Mqueue, KeepsWhoSharesWhat) {
  ASSERT_EQ(::unshare(CLONE_NEWIPC), 0);
  const mqd_t queue = make_queue("/shared", 4, 16);
  ASSERT_GE(queue, 0) << std::strerror(errno);
  const int copy = ::dup(queue);
  const mqd_t other = ::mq_open("/shared", O_WRONLY);
  ASSERT_GE(other, 0);
  const mqd_t answers = make_queue("/answers", 4, 16);
  ASSERT_GE(answers, 0) << std::strerror(errno);
  const pid_t child = ::fork();
  if (child == 0) {
    char room[16];
    const ssize_t n = ::mq_receive(queue, room, sizeof room, nullptr);  // waits
    const int flags = ::fcntl(queue, F_GETFL);
    _exit(n == 2 && std::memcmp(room, "go", 2) == 0 && ::mq_send(answers, "gone", 4, 0) == 0 &&
                  (flags & O_NONBLOCK) != 0
              ? 0
              : 1);
  }
  checkpoint_here();
  mq_attr flags{};
  flags.mq_flags = O_NONBLOCK;
  ASSERT_EQ(::mq_setattr(copy, &flags, nullptr), 0);
  mq_attr now{};
  EXPECT_EQ(::mq_getattr(queue, &now), 0);
  EXPECT_EQ(now.mq_flags, O_NONBLOCK) << "one description";
  EXPECT_EQ(::mq_getattr(other, &now), 0);
  EXPECT_EQ(now.mq_flags, 0) << "another one";
  char room[16];
  EXPECT_EQ(::mq_receive(other, room, sizeof room, nullptr), -1);
  EXPECT_EQ(errno, EBADF) << "opened for writing only";
  send(other, "go");
  int status = -1;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(receive_all(answers), std::vector<Received>({{"gone", 0}}));
}

LIVE_TEST(Mqueue, KeepsThoseThatHaveNoNameAnyMore) {
  ASSERT_EQ(::unshare(CLONE_NEWIPC), 0);
  mqd_t queues[3];
  const char* texts[] = {"oldest", "old", "new"};
  for (int i = 0; i < 3; ++i) {
    queues[i] = make_queue("/generations", 2 + i, 16);
    ASSERT_GE(queues[i], 0) << std::strerror(errno);
    send(queues[i], texts[i]);
    if (i < 2) {
      ASSERT_EQ(::mq_unlink("/generations"), 0);
    }
  }
  checkpoint_here();
  const mqd_t named = ::mq_open("/generations", O_RDWR);
  ASSERT_GE(named, 0) << std::strerror(errno);
  EXPECT_EQ(receive_all(named), std::vector<Received>({{"new", 0}}));
  EXPECT_EQ(receive_all(queues[2]), std::vector<Received>());
  EXPECT_EQ(receive_all(queues[1]), std::vector<Received>({{"old", 0}}));
  EXPECT_EQ(receive_all(queues[0]), std::vector<Received>({{"oldest", 0}}));
  ASSERT_EQ(::mq_unlink("/generations"), 0);
  EXPECT_EQ(::mq_open("/generations", O_RDWR), -1) << "the others stay without a name";
}

LIVE_TEST(Mqueue, NotifiesBySignalAsBefore) {
  ASSERT_EQ(::unshare(CLONE_NEWIPC), 0);
  sigset_t signals;
  ::sigemptyset(&signals);
  ::sigaddset(&signals, SIGUSR1);
  ::sigaddset(&signals, SIGRTMIN + 2);
  ASSERT_EQ(::sigprocmask(SIG_BLOCK, &signals, nullptr), 0);
  const mqd_t empty = make_queue("/empty", 4, 16), filled = make_queue("/filled", 4, 16);
  ASSERT_GE(empty, 0) << std::strerror(errno);
  ASSERT_GE(filled, 0) << std::strerror(errno);
  send(filled, "before");
  sigevent event{};
  event.sigev_notify = SIGEV_SIGNAL;
  event.sigev_signo = SIGUSR1;
  event.sigev_value.sival_ptr = reinterpret_cast<void*>(0x1234'5678'9abcULL);
  ASSERT_EQ(::mq_notify(empty, &event), 0);
  event.sigev_signo = SIGRTMIN + 2;
  event.sigev_value.sival_int = -5;
  ASSERT_EQ(::mq_notify(filled, &event), 0);
  checkpoint_here();
  const timespec now{0, 0};
  siginfo_t info{};
  EXPECT_EQ(::sigtimedwait(&signals, &info, &now), -1) << "the restore has notified: signal " << info.si_signo;
  send(empty, "hello");
  ASSERT_EQ(::sigtimedwait(&signals, &info, &now), SIGUSR1);
  EXPECT_EQ(info.si_code, SI_MESGQ);
  EXPECT_EQ(info.si_value.sival_ptr, reinterpret_cast<void*>(0x1234'5678'9abcULL));
  EXPECT_EQ(info.si_pid, ::getpid());
  send(filled, "after");
  EXPECT_EQ(::sigtimedwait(&signals, &info, &now), -1) << "it was not empty";
  EXPECT_EQ(receive_all(filled), std::vector<Received>({{"before", 0}, {"after", 0}}));
  send(filled, "at last");
  ASSERT_EQ(::sigtimedwait(&signals, &info, &now), SIGRTMIN + 2);
  EXPECT_EQ(info.si_value.sival_int, -5);
  EXPECT_EQ(::mq_notify(empty, &event), 0) << "it was used up";
}

// By a child, whose registration a descriptor of the parent shares the description of.
LIVE_TEST(Mqueue, KeepsWhoIsToBeNotified) {
  ASSERT_EQ(::unshare(CLONE_NEWIPC), 0);
  const mqd_t queue = make_queue("/silent", 4, 16), ready = make_queue("/ready", 4, 16);
  ASSERT_GE(queue, 0) << std::strerror(errno);
  ASSERT_GE(ready, 0) << std::strerror(errno);
  sigevent event{};
  event.sigev_notify = SIGEV_NONE;
  const pid_t child = ::fork();
  char room[16];
  if (child == 0) {
    const bool registered = ::mq_notify(queue, &event) == 0;
    (void)::mq_send(ready, registered ? "yes" : "no", 3, 0);
    for (;;) {
      ::pause();
    }
  }
  ASSERT_EQ(::mq_receive(ready, room, sizeof room, nullptr), 3);
  ASSERT_EQ(std::string(room, 3), "yes");
  checkpoint_here();
  EXPECT_EQ(::mq_notify(queue, &event), -1);
  EXPECT_EQ(errno, EBUSY) << "somebody else is registered";
  ASSERT_EQ(::kill(child, SIGKILL), 0);
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  EXPECT_EQ(::mq_notify(queue, &event), 0) << "it was the child";
}

// The copy of one that ran on comes after the source is through: its deadline is over.
LIVE_TEST_WITH(Mqueue, ReceiverWaitsUntilItsDeadline, {.leave_running = false}) {
  ASSERT_EQ(::unshare(CLONE_NEWIPC), 0);
  const mqd_t queue = make_queue("/never", 4, 16);
  ASSERT_GE(queue, 0) << std::strerror(errno);
  timespec deadline{};
  ::clock_gettime(CLOCK_REALTIME, &deadline);
  deadline.tv_sec += 3;
  const int error = checkpoint_while(SYS_mq_timedreceive, [&] {
    char room[16];
    return ::mq_timedreceive(queue, room, sizeof room, nullptr, &deadline) < 0 ? errno : 0;
  });
  EXPECT_EQ(error, ETIMEDOUT) << std::strerror(error);
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  EXPECT_GE(now.tv_sec, deadline.tv_sec);
}

LIVE_TEST(Mqueue, ReceiverAndSenderGoOnWaiting) {
  ASSERT_EQ(::unshare(CLONE_NEWIPC), 0);
  const mqd_t empty = make_queue("/empty", 4, 16), full = make_queue("/full", 1, 16);
  ASSERT_GE(empty, 0) << std::strerror(errno);
  ASSERT_GE(full, 0) << std::strerror(errno);
  send(full, "first");
  std::atomic<pid_t> receiving{0}, sending{0};
  std::string received;
  int sent = -1;
  std::thread receiver([&] {
    receiving = ::gettid();
    char room[16];
    const ssize_t n = ::mq_receive(empty, room, sizeof room, nullptr);
    received = n < 0 ? std::strerror(errno) : std::string(room, static_cast<std::size_t>(n));
  });
  std::thread sender([&] {
    sending = ::gettid();
    sent = ::mq_send(full, "second", 6, 9) == 0 ? 0 : errno;
  });
  ASSERT_TRUE(detail::wait_until_in_call(receiving, SYS_mq_timedreceive));
  ASSERT_TRUE(detail::wait_until_in_call(sending, SYS_mq_timedsend));
  checkpoint_here();
  send(empty, "for you");
  receiver.join();
  EXPECT_EQ(received, "for you");
  char room[16];
  ASSERT_EQ(::mq_receive(full, room, sizeof room, nullptr), 5);
  EXPECT_EQ(std::string(room, 5), "first");
  sender.join();
  EXPECT_EQ(sent, 0) << std::strerror(sent);
  EXPECT_EQ(receive_all(full), std::vector<Received>({{"second", 9}}));
}

// As a shell would, which makes another kind of path; the host's mounts are not for tests to change.
LIVE_TEST_WITH(Mqueue, OpenedByItsNameOnAMount, {.host = false, .leave_running = false}) {
  ASSERT_EQ(::unshare(CLONE_NEWIPC), 0);
  ASSERT_EQ(::mount("mqueue", "/mnt", "mqueue", 0, nullptr), 0) << std::strerror(errno);
  const mqd_t queue = make_queue("/by-name", 4, 16);
  ASSERT_GE(queue, 0) << std::strerror(errno);
  const int file = ::open("/mnt/by-name", O_RDWR);
  ASSERT_GE(file, 0) << std::strerror(errno);
  send(file, "sent to a file");
  checkpoint_here();
  EXPECT_EQ(receive_all(queue), std::vector<Received>({{"sent to a file", 0}}));
  char text[100] = {};
  EXPECT_GT(::pread(file, text, sizeof text - 1, 0), 0);
  EXPECT_TRUE(std::string(text).starts_with("QSIZE:0 ")) << text;
}

LIVE_TEST_WITH(Mqueue, RefusesNotificationBySocket, {.refused = "waits for a notification by SIGEV_THREAD"}) {
  ASSERT_EQ(::unshare(CLONE_NEWIPC), 0);
  const mqd_t queue = make_queue("/threads", 4, 16);
  ASSERT_GE(queue, 0) << std::strerror(errno);
  const int socket = ::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, 0);
  ASSERT_GE(socket, 0);
  char cookie[32] = "what mq_notify(3) sends back";
  sigevent event{};
  event.sigev_notify = SIGEV_THREAD;
  event.sigev_signo = socket;
  event.sigev_value.sival_ptr = cookie;
  ASSERT_EQ(::syscall(SYS_mq_notify, queue, &event), 0) << std::strerror(errno);
  checkpoint_here();
  send(queue, "still there");
  char told[32] = {};
  EXPECT_EQ(::recv(socket, told, sizeof told, MSG_DONTWAIT), 32);
  EXPECT_STREQ(told, cookie) << "but for the last byte, which says why";
}

// Of a process that its parent has left to the host.
LIVE_TEST_WITH(Mqueue, RefusesNotificationOfOthers,
               {.refused = "a process outside of the tree", .pid_namespace = false, .user_namespace = false}) {
  ASSERT_EQ(::unshare(CLONE_NEWIPC), 0);
  const mqd_t queue = make_queue("/watched", 4, 16), talk = make_queue("/talk", 4, 16);
  ASSERT_GE(queue, 0) << std::strerror(errno);
  ASSERT_GE(talk, 0) << std::strerror(errno);
  char room[16];
  const pid_t child = ::fork();
  if (child == 0) {
    if (::fork() != 0) {
      _exit(0);
    }
    sigevent event{};
    event.sigev_notify = SIGEV_NONE;
    const bool registered = ::mq_notify(queue, &event) == 0;
    (void)::mq_send(talk, registered ? "yes" : "no", 3, 0);
    timespec deadline{};
    ::clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += 60;
    (void)::mq_timedreceive(queue, room, sizeof room, nullptr, &deadline);
    _exit(0);
  }
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  ASSERT_EQ(::mq_receive(talk, room, sizeof room, nullptr), 3);
  ASSERT_EQ(std::string(room, 3), "yes");
  checkpoint_here();
  send(queue, "end");
}

LIVE_TEST_WITH(Mqueue, RefusesThatWithoutAccess, {.refused = "POSIX message queue that was opened with O_PATH"}) {
  ASSERT_EQ(::unshare(CLONE_NEWIPC), 0);
  const mqd_t queue = make_queue("/path", 4, 16);
  ASSERT_GE(queue, 0) << std::strerror(errno);
  ASSERT_GE(::open(("/proc/self/fd/" + std::to_string(queue)).c_str(), O_PATH), 0) << std::strerror(errno);
  send(queue, "stays");
  checkpoint_here();
  EXPECT_EQ(receive_all(queue), std::vector<Received>({{"stays", 0}}));
}

LIVE_TEST_WITH(Mqueue, RefusesThatOfAnotherNamespace, {.refused = "an ipc namespace that is not the tree's own"}) {
  const mqd_t queue = make_queue("/ferry-live-test", 4, 16);
  ASSERT_GE(queue, 0) << std::strerror(errno);
  ASSERT_EQ(::mq_unlink("/ferry-live-test"), 0);
  send(queue, "stays");
  checkpoint_here();
  EXPECT_EQ(receive_all(queue), std::vector<Received>({{"stays", 0}}));
}

LIVE_TEST_WITH(Mqueue, RefusesOneInTheNamespaceOfASingleProcess,
               {.refused = "is of an ipc namespace that is not that of the root task"}) {
  ASSERT_EQ(::unshare(CLONE_NEWIPC), 0);
  Child child([] { return ::unshare(CLONE_NEWIPC) == 0 && ::mq_close(make_queue("/inner", 4, 16)) == 0; },
              [] { return ::mq_unlink("/inner"); });
  checkpoint_here();
  EXPECT_EQ(child.verdict(), 0);
}

LIVE_TEST_WITH(Mqueue, RefusesAMountThatShowsTheNamespaceOfASingleProcess,
               {.refused = "it shows an ipc namespace that is not that of the root task", .user_namespace = false}) {
  ASSERT_EQ(::unshare(CLONE_NEWIPC | (::getpid() == 1 ? 0 : CLONE_NEWNS)), 0);
  ASSERT_EQ(::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr), 0);
  Child child(
      [] { return ::unshare(CLONE_NEWIPC | CLONE_NEWNS) == 0 && ::mount("mqueue", "/mnt", "mqueue", 0, nullptr) == 0; },
      [] { return ::umount2("/mnt", 0); });
  checkpoint_here();
  EXPECT_EQ(child.verdict(), 0);
}

}  // namespace
}  // namespace ferry::live

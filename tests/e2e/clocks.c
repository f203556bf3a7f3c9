/* Waits in every way that knows a time, again and again, and says what was wrong.

   clocks SECONDS [THREADS]: one thread for each way of waiting, and THREADS more that wait for a condition.
   Every wait lasts SECONDS.  None may end early by the clock it goes by, nor late by more than the program's
   patience; no clock may ever go back, nor jump by more than that.  Once a second a line with the number of
   waits that were done so far and of the kinds that have done one; "wrong: …" for what is not as it has to be. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

static const double kPatience = 5;
/* For calls that begin their whole time anew after a stop, and a move stops a program several times. */
static const double kMorePatience = 20;
static double span;
static atomic_int waits;
static int calm[2]; /* a socket on which nothing ever arrives */

static double at(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static struct timespec spec(double seconds) {
  struct timespec t = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
  return t;
}

static void sleep_relative(void) {
  struct timespec t = spec(span);
  while (nanosleep(&t, &t) != 0 && errno == EINTR) {
    printf("wrong: nanosleep was interrupted\n");
  }
}
static void sleep_until(clockid_t clock) {
  struct timespec t = spec(at(clock) + span);
  if (clock_nanosleep(clock, TIMER_ABSTIME, &t, NULL) != 0) {
    printf("wrong: clock_nanosleep was interrupted\n");
  }
}
static void sleep_until_monotonic(void) { sleep_until(CLOCK_MONOTONIC); }
static void sleep_until_boottime(void) { sleep_until(CLOCK_BOOTTIME); }

static void by_timerfd(clockid_t clock, int absolute) {
  int fd = timerfd_create(clock, TFD_CLOEXEC);
  struct itimerspec its = {{0, 0}, spec(absolute ? at(clock) + span : span)};
  uint64_t ticks = 0;
  timerfd_settime(fd, absolute ? TFD_TIMER_ABSTIME : 0, &its, NULL);
  if (read(fd, &ticks, sizeof ticks) != sizeof ticks || ticks != 1) {
    printf("wrong: %lu ticks\n", (unsigned long)ticks);
  }
  close(fd);
}
static void timerfd_monotonic(void) { by_timerfd(CLOCK_MONOTONIC, 0); }
static void timerfd_monotonic_absolute(void) { by_timerfd(CLOCK_MONOTONIC, 1); }
static void timerfd_boottime(void) { by_timerfd(CLOCK_BOOTTIME, 0); }
static void timerfd_boottime_absolute(void) { by_timerfd(CLOCK_BOOTTIME, 1); }

static void by_timer(clockid_t clock, int absolute) {
  struct sigevent event;
  memset(&event, 0, sizeof event);
  event.sigev_notify = SIGEV_THREAD_ID;
  event.sigev_signo = SIGRTMIN;
  event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
  timer_t timer;
  struct itimerspec its = {{0, 0}, spec(absolute ? at(clock) + span : span)};
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGRTMIN);
  timer_create(clock, &event, &timer);
  timer_settime(timer, absolute ? TIMER_ABSTIME : 0, &its, NULL);
  if (sigwaitinfo(&set, NULL) != SIGRTMIN) {
    printf("wrong: no signal of the timer: %s\n", strerror(errno));
  }
  timer_delete(timer);
}
static void timer_monotonic(void) { by_timer(CLOCK_MONOTONIC, 0); }
static void timer_monotonic_absolute(void) { by_timer(CLOCK_MONOTONIC, 1); }
static void timer_boottime(void) { by_timer(CLOCK_BOOTTIME, 0); }
static void timer_boottime_absolute(void) { by_timer(CLOCK_BOOTTIME, 1); }

static void futex_absolute(void) {
  uint32_t word = 1;
  struct timespec t = spec(at(CLOCK_MONOTONIC) + span);
  if (syscall(SYS_futex, &word, FUTEX_WAIT_BITSET_PRIVATE, 1, &t, NULL, FUTEX_BITSET_MATCH_ANY) == 0 ||
      errno != ETIMEDOUT) {
    printf("wrong: futex: %s\n", strerror(errno));
  }
}
static void condition(void) {
  pthread_condattr_t attributes;
  pthread_condattr_init(&attributes);
  pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
  pthread_cond_t never;
  pthread_cond_init(&never, &attributes);
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  struct timespec t = spec(at(CLOCK_MONOTONIC) + span);
  pthread_mutex_lock(&mutex);
  while (pthread_cond_timedwait(&never, &mutex, &t) == 0) {
  }
  pthread_mutex_unlock(&mutex);
}
static void semaphore(void) {
  sem_t never;
  sem_init(&never, 0, 0);
  struct timespec t = spec(at(CLOCK_MONOTONIC) + span);
  while (sem_clockwait(&never, CLOCK_MONOTONIC, &t) != 0 && errno != ETIMEDOUT) {
    printf("wrong: sem_clockwait: %s\n", strerror(errno));
  }
}
static void by_poll(void) {
  struct pollfd p = {calm[0], POLLIN, 0};
  if (poll(&p, 1, (int)(span * 1000)) != 0) {
    printf("wrong: poll: %s\n", strerror(errno));
  }
}
static void by_select(void) {
  fd_set set;
  FD_ZERO(&set);
  FD_SET(calm[0], &set);
  struct timeval t = {(time_t)span, (suseconds_t)((span - (double)(time_t)span) * 1e6)};
  if (select(calm[0] + 1, &set, NULL, NULL, &t) != 0) {
    printf("wrong: select: %s\n", strerror(errno));
  }
}
static void by_epoll(void) {
  int fd = epoll_create1(EPOLL_CLOEXEC);
  struct epoll_event event = {.events = EPOLLIN};
  epoll_ctl(fd, EPOLL_CTL_ADD, calm[0], &event);
  if (epoll_wait(fd, &event, 1, (int)(span * 1000)) != 0) {
    printf("wrong: epoll_wait: %s\n", strerror(errno));
  }
  close(fd);
}
static void by_receive_timeout(void) {
  int pair[2];
  socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair);
  struct timeval t = {(time_t)span, (suseconds_t)((span - (double)(time_t)span) * 1e6)};
  setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t);
  char byte;
  if (recv(pair[0], &byte, 1, 0) != -1 || errno != EAGAIN) {
    printf("wrong: recv: %s\n", strerror(errno));
  }
  close(pair[0]);
  close(pair[1]);
}

struct way {
  const char* name;
  clockid_t clock;
  void (*wait)(void);
  int begins_anew;
  atomic_int done;
};
static struct way ways[] = {
    {"nanosleep", CLOCK_MONOTONIC, sleep_relative, 0, 0},
    {"clock_nanosleep monotonic", CLOCK_MONOTONIC, sleep_until_monotonic, 0, 0},
    {"clock_nanosleep boottime", CLOCK_BOOTTIME, sleep_until_boottime, 0, 0},
    {"timerfd monotonic", CLOCK_MONOTONIC, timerfd_monotonic, 0, 0},
    {"timerfd monotonic absolute", CLOCK_MONOTONIC, timerfd_monotonic_absolute, 0, 0},
    {"timerfd boottime", CLOCK_BOOTTIME, timerfd_boottime, 0, 0},
    {"timerfd boottime absolute", CLOCK_BOOTTIME, timerfd_boottime_absolute, 0, 0},
    {"timer monotonic", CLOCK_MONOTONIC, timer_monotonic, 0, 0},
    {"timer monotonic absolute", CLOCK_MONOTONIC, timer_monotonic_absolute, 0, 0},
    {"timer boottime", CLOCK_BOOTTIME, timer_boottime, 0, 0},
    {"timer boottime absolute", CLOCK_BOOTTIME, timer_boottime_absolute, 0, 0},
    {"futex", CLOCK_MONOTONIC, futex_absolute, 0, 0},
    {"condition", CLOCK_MONOTONIC, condition, 0, 0},
    {"semaphore", CLOCK_MONOTONIC, semaphore, 0, 0},
    {"poll", CLOCK_MONOTONIC, by_poll, 0, 0},
    {"select", CLOCK_MONOTONIC, by_select, 0, 0},
    {"epoll_wait", CLOCK_MONOTONIC, by_epoll, 1, 0},
    {"SO_RCVTIMEO", CLOCK_MONOTONIC, by_receive_timeout, 1, 0},
};
enum { kWays = sizeof ways / sizeof ways[0] };

static void* run(void* argument) {
  for (struct way* way = argument;;) {
    double begin = at(way->clock);
    way->wait();
    double took = at(way->clock) - begin;
    if (took < span - 0.002 || took > span + (way->begins_anew ? kMorePatience : kPatience)) {
      printf("wrong: %s took %.3f s instead of %.3f\n", way->name, took, span);
    }
    atomic_fetch_add(&waits, 1);
    atomic_fetch_add(&way->done, 1);
  }
  return NULL;
}

int main(int argc, char** argv) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  span = argc > 1 ? atof(argv[1]) : 1;
  int more = argc > 2 ? atoi(argv[2]) : 0;
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGRTMIN);
  pthread_sigmask(SIG_BLOCK, &set, NULL);
  socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, calm);
  pthread_attr_t small;
  pthread_attr_init(&small);
  pthread_attr_setstacksize(&small, 65536);
  pthread_t thread;
  static struct way crowd = {"condition of many", CLOCK_MONOTONIC, condition, 0, 0};
  for (int i = 0; i < kWays + more; ++i) {
    if (pthread_create(&thread, &small, run, i < kWays ? &ways[i] : &crowd) != 0) {
      printf("wrong: no thread\n");
      return 1;
    }
  }
  static const clockid_t clocks[] = {CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_MONOTONIC_RAW, CLOCK_MONOTONIC_COARSE};
  double last[4], said = 0;
  for (int i = 0; i < 4; ++i) {
    last[i] = at(clocks[i]);
  }
  for (;;) {
    for (int i = 0; i < 4; ++i) {
      struct timespec raw;
      syscall(SYS_clock_gettime, clocks[i], &raw);
      double by_call = (double)raw.tv_sec + (double)raw.tv_nsec / 1e9;
      double now = at(clocks[i]);
      if (now < last[i] || now < by_call || now > by_call + kPatience || now > last[i] + kPatience) {
        printf("wrong: clock %d went from %.6f to %.6f, by system call %.6f\n", (int)clocks[i], last[i], now, by_call);
      }
      last[i] = now;
    }
    if (last[0] - said >= 0.2) {
      int kinds = 0;
      for (int i = 0; i < kWays; ++i) {
        kinds += atomic_load(&ways[i].done) > 0;
      }
      said = last[0];
      printf("%.6f waits %d kinds %d of %d\n", said, atomic_load(&waits), kinds, (int)kWays);
    }
    usleep(1000);
  }
}

// hold: a process that holds COUNT of one KIND of thing and sleeps: threads, processes, mappings, descriptors, MiB of
// memory. build: cc -O2 -static -pthread hold.c -o hold      run: hold KIND COUNT
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

static void* idle(void* unused) {
  for (;;) pause();
  return unused;
}

static void hold_threads(long count) {
  pthread_attr_t small;
  pthread_attr_init(&small);
  pthread_attr_setstacksize(&small, 65536);
  for (long i = 0; i < count; i++) {
    pthread_t thread;
    if (pthread_create(&thread, &small, idle, NULL) != 0) exit(3);
  }
}

static void hold_processes(long count) {
  for (long i = 0; i < count; i++) {
    const pid_t child = fork();
    if (child < 0) exit(3);
    if (child == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      idle(NULL);
    }
  }
}

// Neighbours differ in their protection, so that the kernel does not merge them.
static void hold_mappings(long count) {
  char* at = mmap(NULL, (size_t)count * 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) exit(3);
  for (long i = 0; i < count; i += 2) {
    if (mprotect(at + i * 4096, 4096, PROT_READ | PROT_WRITE) != 0) exit(3);
    at[i * 4096] = 1;
  }
}

static void hold_descriptors(long count) {
  struct rlimit limit;
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  for (long i = 0; i < count; i++)
    if (open("/dev/null", O_RDWR) < 0) exit(3);
}

// No two pages are alike, and none is empty.
static void hold_memory(long mib) {
  const size_t size = (size_t)mib << 20;
  char* at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) exit(3);
  for (size_t i = 0; i < size; i += 4096) *(size_t*)(at + i) = i + 1;
}

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const long count = atol(argv[2]);
  if (strcmp(argv[1], "threads") == 0)
    hold_threads(count);
  else if (strcmp(argv[1], "processes") == 0)
    hold_processes(count);
  else if (strcmp(argv[1], "mappings") == 0)
    hold_mappings(count);
  else if (strcmp(argv[1], "descriptors") == 0)
    hold_descriptors(count);
  else if (strcmp(argv[1], "memory") == 0)
    hold_memory(count);
  else
    return 2;
  printf("ready\n");
  fflush(stdout);
  idle(NULL);
}

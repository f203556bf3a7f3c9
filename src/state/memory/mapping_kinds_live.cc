// Mappings of every kind: what they hold, how they are shared, and what the kernel was told about them.
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <sstream>
#include <string>

#include "live/live.h"

namespace ferry::live {
namespace {

constexpr std::size_t kPage = 4096;

std::string own_name(const char* what) { return "/tmp/ferry-map-" + std::to_string(::getpid()) + "-" + what; }

char* map(std::size_t pages, int protection, int flags, int fd = -1, off_t offset = 0) {
  void* at = ::mmap(nullptr, pages * kPage, protection, flags, fd, offset);
  return at == MAP_FAILED ? nullptr : static_cast<char*>(at);
}

// VmFlags of the mapping that begins at `at`.
std::string flags_of(const void* at) {
  std::ifstream smaps("/proc/self/smaps");
  char wanted[32];
  std::snprintf(wanted, sizeof wanted, "%lx-", reinterpret_cast<unsigned long>(at));
  bool here = false;
  for (std::string line; std::getline(smaps, line);) {
    if (line.find('-') != std::string::npos && line.find("kB") == std::string::npos && line.find("VmFlags") != 0) {
      here = line.rfind(wanted, 0) == 0;
    } else if (here && line.rfind("VmFlags:", 0) == 0) {
      return line + " ";
    }
  }
  return "";
}

sigjmp_buf g_jump;
bool faults(const volatile char* at, bool writing = false) {
  struct sigaction action {};
  struct sigaction before[2];
  action.sa_handler = [](int) { siglongjmp(g_jump, 1); };
  action.sa_flags = SA_NODEFER;
  ::sigaction(SIGSEGV, &action, &before[0]);
  ::sigaction(SIGBUS, &action, &before[1]);
  bool faulted = true;
  if (sigsetjmp(g_jump, 1) == 0) {
    if (writing) {
      *const_cast<volatile char*>(at) = 'w';
    } else {
      (void)*at;
    }
    faulted = false;
  }
  ::sigaction(SIGSEGV, &before[0], nullptr);
  ::sigaction(SIGBUS, &before[1], nullptr);
  return faulted;
}

LIVE_TEST(MappingKinds, ProtectionsInsideOneMapping) {
  char* at = map(8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  ASSERT_NE(at, nullptr);
  for (std::size_t i = 0; i < 8; ++i) {
    at[i * kPage] = static_cast<char>('a' + i);
  }
  ASSERT_EQ(::mprotect(at + kPage, kPage, PROT_NONE), 0);
  ASSERT_EQ(::mprotect(at + 3 * kPage, kPage, PROT_READ), 0);
  ASSERT_EQ(::mprotect(at + 5 * kPage, kPage, PROT_READ | PROT_EXEC), 0);
  checkpoint_here();
  EXPECT_TRUE(faults(at + kPage));
  EXPECT_FALSE(faults(at + 3 * kPage));
  EXPECT_TRUE(faults(at + 3 * kPage, true));
  EXPECT_TRUE(faults(at + 5 * kPage, true));
  ASSERT_EQ(::mprotect(at, 8 * kPage, PROT_READ | PROT_WRITE), 0);
  for (std::size_t i = 0; i < 8; ++i) {
    EXPECT_EQ(at[i * kPage], static_cast<char>('a' + i)) << i;
  }
}

LIVE_TEST(MappingKinds, GrowsDownAsFarAsItMay) {
  // mmap(2), MAP_GROWSDOWN: it stays a guard gap of 256 pages away from what is below.
  char* room = map(1024, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);
  ASSERT_NE(room, nullptr);
  ASSERT_EQ(::munmap(room, 1024 * kPage), 0);
  char* top = room + 1020 * kPage;
  auto* at = static_cast<char*>(::mmap(top, 2 * kPage, PROT_READ | PROT_WRITE,
                                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED_NOREPLACE, -1, 0));
  ASSERT_EQ(at, top);
  top[-10] = 'g';  // it has grown by a page before
  checkpoint_here();
  EXPECT_EQ(top[-10], 'g');
  volatile char* below = top - 3 * kPage;
  *below = 'n';
  EXPECT_EQ(*below, 'n');
}

LIVE_TEST(MappingKinds, SharedAnonymousMemoryAcrossFork) {
  char* at = map(4, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS);
  ASSERT_NE(at, nullptr);
  const int zero = ::open("/dev/zero", O_RDWR);
  char* of_zero = map(2, PROT_READ | PROT_WRITE, MAP_SHARED, zero);
  char* private_zero = map(2, PROT_READ | PROT_WRITE, MAP_PRIVATE, zero);
  ASSERT_NE(of_zero, nullptr);
  ASSERT_NE(private_zero, nullptr);
  of_zero[5] = 'z';
  private_zero[6] = 'p';
  at[kPage] = '1';
  int go[2], say[2];
  ASSERT_EQ(::pipe(go), 0);
  ASSERT_EQ(::pipe(say), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    char byte = 0;
    (void)!::read(go[0], &byte, 1);
    byte = at[0] == 'p' && at[kPage] == '1' && of_zero[5] == 'z' && private_zero[6] == 'p' ? 'y' : 'n';
    at[2 * kPage] = 'c';
    of_zero[7] = 'c';
    private_zero[6] = 'q';
    (void)!::write(say[1], &byte, 1);
    ::_exit(0);
  }
  checkpoint_here();
  at[0] = 'p';
  ASSERT_EQ(::write(go[1], "x", 1), 1);
  char byte = 0;
  ASSERT_EQ(::read(say[0], &byte, 1), 1);
  EXPECT_EQ(byte, 'y');
  EXPECT_EQ(at[2 * kPage], 'c');
  EXPECT_EQ(of_zero[7], 'c');
  EXPECT_EQ(private_zero[6], 'p');
  EXPECT_EQ(::waitpid(child, nullptr, 0), child);
}

LIVE_TEST_WITH(MappingKinds, FilesChangedTruncatedAndGrown, Options{.leave_running = false}) {
  const std::string path = own_name("file");
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL, 0644);
  ASSERT_EQ(::ftruncate(fd, 4 * kPage), 0);
  ASSERT_EQ(::pwrite(fd, "disk", 4, 0), 4);
  char* copy = map(4, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
  char* shared = map(4, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
  char* tail = map(2, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 2 * kPage);
  const int reader = ::open(path.c_str(), O_RDONLY);
  char* read_only = map(1, PROT_READ, MAP_SHARED, reader);
  ASSERT_NE(tail, nullptr);
  ASSERT_NE(read_only, nullptr);
  ::close(fd);
  ::close(reader);
  copy[2 * kPage] = 'c';
  shared[1] = 'S';
  ASSERT_EQ(::truncate(path.c_str(), kPage + 100), 0);  // what lies beyond faults from now on
  checkpoint_here();
  EXPECT_EQ(shared[1], 'S');
  EXPECT_EQ(copy[0], 'd');
  EXPECT_TRUE(faults(shared + 3 * kPage));
  EXPECT_TRUE(faults(tail));
  EXPECT_TRUE(faults(read_only, true));
  EXPECT_EQ(::mprotect(read_only, kPage, PROT_READ | PROT_WRITE), -1);
  ASSERT_EQ(::truncate(path.c_str(), 4 * kPage), 0);
  tail[0] = 't';
  EXPECT_EQ(shared[2 * kPage], 't');
  EXPECT_EQ(::unlink(path.c_str()), 0);
}

LIVE_TEST(MappingKinds, DeletedFilesThatNothingElseHolds) {
  const std::string path = own_name("gone");
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL, 0644);
  ASSERT_EQ(::ftruncate(fd, 3 * kPage), 0);
  ASSERT_EQ(::pwrite(fd, "last", 4, 2 * kPage), 4);
  char* shared = map(3, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
  char* copy = map(3, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
  ASSERT_NE(copy, nullptr);
  ::close(fd);
  copy[1] = 'c';
  shared[2] = 's';
  ASSERT_EQ(::unlink(path.c_str()), 0);
  checkpoint_here();
  EXPECT_EQ(copy[1], 'c');
  EXPECT_EQ(shared[1], 0);
  EXPECT_EQ(std::string(shared + 2 * kPage, 4), "last");
  shared[kPage] = 'n';
  EXPECT_EQ(copy[kPage], 'n') << "one file";
}

LIVE_TEST(MappingKinds, LocksOfEachKind) {
  char* locked = map(2, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  char* on_fault = map(2, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  ASSERT_EQ(::mlock(locked, 2 * kPage), 0);
  ASSERT_EQ(::mlock2(on_fault, 2 * kPage, MLOCK_ONFAULT), 0);
  on_fault[0] = 'x';
  unsigned char resident[2] = {};
  ASSERT_EQ(::mincore(on_fault, 2 * kPage, resident), 0);
  ASSERT_EQ(resident[1] & 1, 0);
  checkpoint_here();
  EXPECT_NE(flags_of(locked).find(" lo "), std::string::npos);
  EXPECT_NE(flags_of(on_fault).find(" lo "), std::string::npos);
  EXPECT_EQ(on_fault[0], 'x');
  ASSERT_EQ(::mincore(on_fault, 2 * kPage, resident), 0);
  EXPECT_EQ(resident[0] & 1, 1);
  EXPECT_EQ(resident[1] & 1, 0) << "it is locked when it is touched, not before";
}

// A user namespace's root may lock no more than its limit, which our area would exceed.
const Options kMayLockAll{.user_namespace = false};

LIVE_TEST_WITH(MappingKinds, LockedFuture, kMayLockAll) {
  ASSERT_EQ(::mlockall(MCL_CURRENT | MCL_FUTURE), 0);
  checkpoint_here();
  char* fresh = map(2, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  ASSERT_NE(fresh, nullptr);
  EXPECT_NE(flags_of(fresh).find(" lo "), std::string::npos);
  ASSERT_EQ(::munlockall(), 0);
  char* after = map(2, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  EXPECT_EQ(flags_of(after).find(" lo "), std::string::npos);
}

LIVE_TEST_WITH(MappingKinds, LockedFutureOnFault, kMayLockAll) {
  ASSERT_EQ(::mlockall(MCL_FUTURE | MCL_ONFAULT), 0);
  checkpoint_here();
  char* fresh = map(2, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  ASSERT_NE(fresh, nullptr);
  EXPECT_NE(flags_of(fresh).find(" lo "), std::string::npos);
  unsigned char resident[2] = {};
  ASSERT_EQ(::mincore(fresh, 2 * kPage, resident), 0);
  EXPECT_EQ(resident[0] & 1, 0);
}

LIVE_TEST(MappingKinds, AdviceAndNames) {
  struct {
    int advice;
    const char* flag;
  } kinds[] = {{MADV_SEQUENTIAL, " sr "}, {MADV_RANDOM, " rr "},     {MADV_DONTFORK, " dc "},  {MADV_DONTDUMP, " dd "},
               {MADV_HUGEPAGE, " hg "},   {MADV_NOHUGEPAGE, " nh "}, {MADV_WIPEONFORK, " wf "}};
  char* at[std::size(kinds)];
  for (std::size_t i = 0; i < std::size(kinds); ++i) {
    char* room = map(4, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS);
    at[i] = room + kPage;
    ASSERT_EQ(::mprotect(at[i], 2 * kPage, PROT_READ | PROT_WRITE), 0);
    ASSERT_EQ(::madvise(at[i], 2 * kPage, kinds[i].advice), 0) << kinds[i].flag;
    at[i][0] = 'a';
  }
  char* named = map(2, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  constexpr int kSetVma = 0x53564d41, kAnonName = 0;
  const bool names = ::prctl(kSetVma, kAnonName, named, 2 * kPage, "ferry test") == 0;
  char* shared_named = map(2, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS);
  const bool shared_names = ::prctl(kSetVma, kAnonName, shared_named, 2 * kPage, "ferry shared") == 0;
  checkpoint_here();
  for (std::size_t i = 0; i < std::size(kinds); ++i) {
    EXPECT_NE(flags_of(at[i]).find(kinds[i].flag), std::string::npos) << kinds[i].flag;
    EXPECT_EQ(at[i][0], 'a');
  }
  std::ifstream maps("/proc/self/maps");
  std::stringstream text;
  text << maps.rdbuf();
  EXPECT_EQ(text.str().find("[anon:ferry test]") != std::string::npos, names);
  EXPECT_EQ(text.str().find("[anon_shmem:ferry shared]") != std::string::npos, shared_names);
}

LIVE_TEST(MappingKinds, GuardRegions) {
  constexpr int kInstall = 102;
  char* at = map(6, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  at[0] = 'a';
  at[5 * kPage] = 'f';
  if (::madvise(at + 2 * kPage, 2 * kPage, kInstall) != 0) {
    GTEST_SKIP() << "no guard regions";
  }
  checkpoint_here();
  EXPECT_EQ(at[0], 'a');
  EXPECT_EQ(at[5 * kPage], 'f');
  EXPECT_TRUE(faults(at + 2 * kPage));
  EXPECT_TRUE(faults(at + 3 * kPage, true));
  EXPECT_FALSE(faults(at + kPage));
  EXPECT_FALSE(faults(at + 4 * kPage));
}

LIVE_TEST(MappingKinds, SysvSegmentAttachedTwiceAndRemoved) {
  ASSERT_EQ(::unshare(0x08000000 /* CLONE_NEWIPC */), 0);
  const int id = ::shmget(IPC_PRIVATE, 5 * kPage, IPC_CREAT | 0600);
  ASSERT_GE(id, 0);
  auto* first = static_cast<char*>(::shmat(id, nullptr, 0));
  auto* second = static_cast<char*>(::shmat(id, nullptr, SHM_RDONLY));
  ASSERT_NE(second, reinterpret_cast<char*>(-1));
  first[0] = 'h';
  first[4 * kPage] = 't';
  ASSERT_EQ(::shmctl(id, IPC_RMID, nullptr), 0);
  // A hole in the first attachment.
  ASSERT_EQ(::munmap(first + kPage, kPage), 0);
  checkpoint_here();
  EXPECT_EQ(first[0], 'h');
  EXPECT_EQ(second[4 * kPage], 't');
  first[3 * kPage] = 'n';
  EXPECT_EQ(second[3 * kPage], 'n');
  EXPECT_TRUE(faults(first + kPage));
  EXPECT_TRUE(faults(second, true));
  shmid_ds info{};
  ASSERT_EQ(::shmctl(id, IPC_STAT, &info), 0);
  EXPECT_NE(info.shm_perm.mode & SHM_DEST, 0);
  EXPECT_EQ(::shmdt(first), 0);
  EXPECT_EQ(::shmdt(second), 0);
  EXPECT_EQ(::shmctl(id, IPC_STAT, &info), -1);
}

LIVE_TEST(MappingKinds, HugePages) {
  { std::ofstream("/proc/sys/vm/nr_overcommit_hugepages") << 16; }
  const std::size_t huge = std::size_t{2} << 20;
  void* one = ::mmap(nullptr, 2 * huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
  if (one == MAP_FAILED) {
    GTEST_SKIP() << "no huge pages";
  }
  void* two = ::mmap(nullptr, 2 * huge, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
  ASSERT_NE(two, MAP_FAILED);
  const int fd = ::memfd_create("huge", MFD_HUGETLB);
  ASSERT_GE(fd, 0);
  ASSERT_EQ(::ftruncate(fd, static_cast<off_t>(huge)), 0);
  void* three = ::mmap(nullptr, huge, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  ASSERT_NE(three, MAP_FAILED);
  static_cast<char*>(one)[huge + 5] = '1';
  static_cast<char*>(two)[huge + 6] = '2';
  static_cast<char*>(three)[7] = '3';
  checkpoint_here();
  EXPECT_EQ(static_cast<char*>(one)[huge + 5], '1');
  EXPECT_EQ(static_cast<char*>(two)[huge + 6], '2');
  EXPECT_EQ(static_cast<char*>(three)[7], '3');
  EXPECT_NE(flags_of(one).find(" ht "), std::string::npos);
  static_cast<char*>(one)[0] = 'n';
  static_cast<char*>(two)[0] = 'n';
}

LIVE_TEST(MappingKinds, SysvSegmentOfHugePages) {
  std::ofstream("/proc/sys/vm/nr_overcommit_hugepages") << 16;
  ASSERT_EQ(::unshare(0x08000000 /* CLONE_NEWIPC */), 0);
  const std::size_t huge = std::size_t{2} << 20;
  const int id = ::shmget(IPC_PRIVATE, 2 * huge, IPC_CREAT | SHM_HUGETLB | 0600);
  void* at = id < 0 ? MAP_FAILED : ::shmat(id, nullptr, 0);
  if (at == MAP_FAILED) {
    GTEST_SKIP() << "no huge pages";
  }
  static_cast<char*>(at)[huge + 9] = 's';
  checkpoint_here();
  EXPECT_EQ(static_cast<char*>(at)[huge + 9], 's');
  EXPECT_NE(flags_of(at).find(" ht "), std::string::npos);
  shmid_ds info{};
  ASSERT_EQ(::shmctl(id, IPC_STAT, &info), 0);
  EXPECT_EQ(info.shm_segsz, 2 * huge);
  EXPECT_EQ(info.shm_nattch, 1U);
}

LIVE_TEST(MappingKinds, SharedMemoryMovedAndCut) {
  char* at = map(8, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS);
  for (std::size_t i = 0; i < 8; ++i) {
    at[i * kPage] = static_cast<char>('0' + i);
  }
  char* room = map(16, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS);
  auto* moved = static_cast<char*>(
      ::mremap(at + 4 * kPage, 2 * kPage, 2 * kPage, MREMAP_MAYMOVE | MREMAP_FIXED, room + 4 * kPage));
  ASSERT_EQ(moved, room + 4 * kPage);
  // mremap(2) with an old size of 0 makes another mapping of the same pages.
  auto* twin = static_cast<char*>(::mremap(moved, 0, 2 * kPage, MREMAP_MAYMOVE));
  ASSERT_NE(twin, MAP_FAILED);
  checkpoint_here();
  EXPECT_EQ(moved[0], '4');
  EXPECT_EQ(twin[kPage], '5');
  EXPECT_EQ(at[7 * kPage], '7');
  moved[1] = 'm';
  EXPECT_EQ(twin[1], 'm');
}

LIVE_TEST(MappingKinds, ProtectionKeys) {
  const int key = ::pkey_alloc(0, 0);
  if (key < 0) {
    GTEST_SKIP() << "no protection keys";
  }
  char* at = map(2, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  at[0] = 'k';
  ASSERT_EQ(::pkey_mprotect(at, 2 * kPage, PROT_READ | PROT_WRITE, key), 0);
  ASSERT_EQ(::pkey_set(key, PKEY_DISABLE_WRITE), 0);
  checkpoint_here();
  EXPECT_EQ(at[0], 'k');
  EXPECT_TRUE(faults(at, true));
  EXPECT_EQ(::pkey_free(key), 0);
}

LIVE_TEST(MappingKinds, SealedMappingsStaySealed) {
  char* at = map(4, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  at[kPage] = 's';
  if (::syscall(462 /* mseal */, at + kPage, 2 * kPage, 0UL) != 0) {
    GTEST_SKIP() << "no mseal";
  }
  checkpoint_here();
  EXPECT_EQ(at[kPage], 's');
  at[2 * kPage] = 'w';
  EXPECT_EQ(::munmap(at + kPage, kPage), -1);
  EXPECT_EQ(::mprotect(at + 2 * kPage, kPage, PROT_READ), -1);
  EXPECT_EQ(::munmap(at, kPage), 0);
  EXPECT_EQ(::munmap(at + 3 * kPage, kPage), 0);
  EXPECT_NE(flags_of(at + kPage).find(" sl "), std::string::npos);
}

LIVE_TEST(MappingKinds, DroppableMemory) {
  constexpr int kDroppable = 8;  // MAP_DROPPABLE, Linux 6.11
  char* at = map(2, PROT_READ | PROT_WRITE, kDroppable | MAP_ANONYMOUS);
  if (at == nullptr) {
    GTEST_SKIP() << "no MAP_DROPPABLE";
  }
  at[0] = 'd';
  checkpoint_here();
  EXPECT_TRUE(at[0] == 'd' || at[0] == 0) << "it may be dropped, but is never something else";
  EXPECT_NE(flags_of(at).find(" dp "), std::string::npos);
  at[kPage] = 'w';
  EXPECT_EQ(at[kPage], 'w');
}

LIVE_TEST(MappingKinds, AHoleAtTheBottomAndManyPieces) {
  constexpr std::size_t kPieces = 500;
  char* at = map(2 * kPieces, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  for (std::size_t i = 0; i < kPieces; ++i) {
    std::memcpy(at + 2 * i * kPage, &i, sizeof i);
    ASSERT_EQ(::munmap(at + (2 * i + 1) * kPage, kPage), 0);
  }
  checkpoint_here();
  for (std::size_t i = 0; i < kPieces; ++i) {
    std::size_t got = 0;
    std::memcpy(&got, at + 2 * i * kPage, sizeof got);
    EXPECT_EQ(got, i);
  }
  EXPECT_TRUE(faults(at + kPage));
}

}  // namespace
}  // namespace ferry::live

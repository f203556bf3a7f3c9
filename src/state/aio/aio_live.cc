// Rings of asynchronous I/O: io_setup(2).
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <string>

#include "live/live.h"

namespace ferry::live {
namespace {

long setup(unsigned events, aio_context_t* context) { return ::syscall(SYS_io_setup, events, context); }
long submit(aio_context_t context, iocb* one) { return ::syscall(SYS_io_submit, context, 1, &one); }
long events(aio_context_t context, long least, long most, io_event* out) {
  timespec limit{5, 0};
  return ::syscall(SYS_io_getevents, context, least, most, out, &limit);
}

iocb read_of(int fd, void* buffer, std::size_t size, std::uint64_t mark) {
  iocb out{};
  out.aio_lio_opcode = IOCB_CMD_PREAD;
  out.aio_fildes = static_cast<std::uint32_t>(fd);
  out.aio_buf = reinterpret_cast<std::uint64_t>(buffer);
  out.aio_nbytes = size;
  out.aio_data = mark;
  return out;
}

LIVE_TEST(Aio, RingsAreUsableAgain) {
  aio_context_t small = 0, large = 0;
  ASSERT_EQ(setup(16, &small), 0);
  ASSERT_EQ(setup(1000, &large), 0);
  const int fd = ::open("/proc/self/exe", O_RDONLY);
  char buffer[4] = {};
  // Some requests went through the ring before.
  for (std::uint64_t i = 0; i < 40; ++i) {
    iocb one = read_of(fd, buffer, sizeof buffer, i);
    ASSERT_EQ(submit(small, &one), 1);
    io_event event{};
    ASSERT_EQ(events(small, 1, 1, &event), 1);
  }
  checkpoint_here();
  for (const aio_context_t context : {small, large}) {
    for (std::uint64_t i = 0; i < 40; ++i) {
      iocb one = read_of(fd, buffer, sizeof buffer, 1000 + i);
      ASSERT_EQ(submit(context, &one), 1);
      io_event event{};
      ASSERT_EQ(events(context, 1, 1, &event), 1);
      ASSERT_EQ(event.data, 1000 + i);
      ASSERT_EQ(event.res, 4);
    }
  }
  EXPECT_EQ(std::string(buffer + 1, 3), "ELF");
  EXPECT_EQ(::syscall(SYS_io_destroy, small), 0);
}

LIVE_TEST(Aio, CompletionsThatWereNotFetched) {
  aio_context_t context = 0;
  ASSERT_EQ(setup(8, &context), 0);
  const int fd = ::open("/proc/self/exe", O_RDONLY);
  char buffer[3][4] = {};
  for (std::uint64_t i = 0; i < 3; ++i) {
    iocb one = read_of(fd, buffer[i], 4, 7 + i);
    ASSERT_EQ(submit(context, &one), 1);
  }
  checkpoint_here();
  io_event got[8] = {};
  ASSERT_EQ(events(context, 3, 8, got), 3);
  for (std::uint64_t i = 0; i < 3; ++i) {
    EXPECT_EQ(got[i].data, 7 + i);
    EXPECT_EQ(got[i].res, 4);
  }
  iocb one = read_of(fd, buffer[0], 4, 99);
  ASSERT_EQ(submit(context, &one), 1);
  ASSERT_EQ(events(context, 1, 8, got), 1);
  EXPECT_EQ(got[0].data, 99U);
}

}  // namespace
}  // namespace ferry::live

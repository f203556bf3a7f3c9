#include "migrate/pump.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <optional>
#include <thread>
#include <vector>

namespace ferry::migrate {
namespace {

struct Pipe {
  UniqueFd reader;
  UniqueFd writer;
};

Result<Pipe> make_pipe() {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) {
    return sys_fail("pipe2");
  }
  ::fcntl(ends[0], F_SETPIPE_SZ, 1 << 20);  // fewer switches; where it is not allowed, it stays as it is
  return Pipe{UniqueFd(ends[0]), UniqueFd(ends[1])};
}

}  // namespace

Result<std::uint64_t> send_written(Link& link, const std::function<Result<void>(int fd)>& write,
                                   const std::function<void(std::uint64_t)>& on_bytes) {
  FERRY_TRY(Pipe pipe, make_pipe());
  Result<void> written;
  std::thread writer([&] {
    written = write(pipe.writer.get());
    pipe.writer.reset();
  });
  const auto pump = [&]() -> Result<std::uint64_t> {
    std::vector<std::byte> buffer(256 << 10);
    std::uint64_t total = 0;
    for (;;) {
      const ssize_t got = ::read(pipe.reader.get(), buffer.data(), buffer.size());
      if (got < 0 && errno != EINTR) {
        return sys_fail("read(pipe)");
      }
      if (got == 0) {
        return total;
      }
      FERRY_CHECK(link.check_interrupt());
      FERRY_CHECK(link.send_bulk(std::span(buffer).first(static_cast<std::size_t>(std::max<ssize_t>(got, 0)))));
      total += static_cast<std::uint64_t>(std::max<ssize_t>(got, 0));
      if (on_bytes) {
        on_bytes(total);
      }
    }
  };
  auto pumped = pump();
  pipe.reader.reset();  // a writer that still writes fails
  writer.join();
  FERRY_CHECK(pumped);
  FERRY_CHECK(written);  // without the stream's end: the other side must not take it for whole
  FERRY_CHECK(link.end_bulk());
  return pumped;
}

Result<std::uint64_t> receive_read(Link& link, const std::function<Result<void>(int fd)>& read) {
  FERRY_TRY(Pipe pipe, make_pipe());
  Result<void> done;
  std::thread reader([&] {
    done = read(pipe.reader.get());
    pipe.reader.reset();
  });
  bool reader_gone = false;
  const auto sink = [&](std::span<const std::byte> bytes) -> Result<void> {
    while (!bytes.empty() && !reader_gone) {
      const ssize_t written = ::write(pipe.writer.get(), bytes.data(), bytes.size());
      if (written < 0 && errno == EPIPE) {
        reader_gone = true;  // it failed and will say why; the rest of the stream is passed over
      } else if (written < 0 && errno != EINTR) {
        return sys_fail("write(pipe)");
      } else {
        bytes = bytes.subspan(static_cast<std::size_t>(std::max<ssize_t>(written, 0)));
      }
    }
    return {};
  };
  auto pumped = link.receive_stream(sink);
  pipe.writer.reset();
  reader.join();
  FERRY_CHECK(done);
  return pumped;
}

}  // namespace ferry::migrate

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <limits>

#include "state/pipe/pipe.h"
#include "sys/file.h"

namespace ferry::state {
namespace {

struct Ends {
  UniqueFd read, write;
};

Result<Ends> make_pipe(int flags) {
  int fds[2];
  if (::pipe2(fds, flags | O_CLOEXEC) != 0) {
    return sys_fail("pipe2");
  }
  return Ends{UniqueFd(fds[0]), UniqueFd(fds[1])};
}

// The kernel rounds a capacity up, so what F_GETPIPE_SZ said is always possible, unless it is above
// fs.pipe-max-size, which only CAP_SYS_RESOURCE may exceed (pipe(7)).
Result<void> set_capacity(int fd, std::uint32_t capacity, std::string_view subject) {
  const int now = ::fcntl(fd, F_GETPIPE_SZ);
  if (now < 0) {
    return sys_fail(fmt::format("fcntl({}, F_GETPIPE_SZ)", subject));
  }
  if (static_cast<std::uint32_t>(now) != capacity && ::fcntl(fd, F_SETPIPE_SZ, static_cast<int>(capacity)) < 0) {
    return sys_fail(
        fmt::format("fcntl({}, F_SETPIPE_SZ, {}); is fs.pipe-max-size lower than that?", subject, capacity));
  }
  return {};
}

}  // namespace

Result<PipeContent> peek_pipe(int end, std::string_view subject) {
  PipeContent content;
  const int capacity = ::fcntl(end, F_GETPIPE_SZ);
  if (capacity < 0) {
    return sys_fail(fmt::format("fcntl({}, F_GETPIPE_SZ)", subject));
  }
  content.capacity = static_cast<std::uint32_t>(capacity);
  int held = 0;
  if (::ioctl(end, FIONREAD, &held) != 0) {
    return sys_fail(fmt::format("ioctl({}, FIONREAD)", subject));
  }
  if (held == 0) {
    return content;
  }
  FERRY_TRY(const Ends copy, make_pipe(O_NONBLOCK));
  // A pipe is full when its slots are used up, however little each holds, so the copy needs as many.
  FERRY_CHECK(set_capacity(copy.write.get(), content.capacity, "our copy of a pipe").during("{}", subject));
  const ssize_t got = ::tee(end, copy.write.get(), std::numeric_limits<int>::max(), SPLICE_F_NONBLOCK);
  if (got < 0) {
    return sys_fail(fmt::format("tee({})", subject));
  }
  if (got != held) {
    return fail(Kind::os, "{}: tee(2) copied {} of {} bytes", subject, got, held);
  }
  std::string buffer(static_cast<std::size_t>(held), '\0');
  std::size_t used = 0;
  while (used < buffer.size()) {
    const ssize_t n = ::read(copy.read.get(), buffer.data() + used, buffer.size() - used);
    if (n <= 0) {
      return sys_fail(fmt::format("read(our copy of {})", subject));
    }
    // pipe(2), O_DIRECT: a read takes one packet, and everything if there are none.  tee(2) keeps the mark.
    content.pieces.push_back(buffer.substr(used, static_cast<std::size_t>(n)));
    used += static_cast<std::size_t>(n);
  }
  return content;
}

void add_pipe_content(image::Set& set, image::Type type, std::uint32_t pipe_id, const PipeContent& content) {
  const auto add = [&](std::string bytes) {
    pb::PipeDataEntry entry;
    entry.set_pipe_id(pipe_id);
    entry.set_bytes(static_cast<std::uint32_t>(bytes.size()));
    entry.set_size(content.capacity);
    set.add({type}, std::move(entry), std::move(bytes));
  };
  if (content.pieces.empty()) {
    add({});  // an empty pipe still has a capacity
  }
  for (const std::string& piece : content.pieces) {
    add(piece);
  }
}

PipeContents index_pipe_contents(const image::Set& set, image::Type type) {
  PipeContents out;
  for (const image::Entry& e : set.entries({type})) {
    out[static_cast<const pb::PipeDataEntry&>(*e.message).pipe_id()].push_back(&e);
  }
  return out;
}

Result<void> fill_pipe(int writer, const std::vector<const image::Entry*>& content, const std::string& subject,
                       bool packets) {
  bool sized = false;
  for (const image::Entry* e : content) {
    const auto& data = static_cast<const pb::PipeDataEntry&>(*e->message);
    if (data.has_size() && !sized) {
      FERRY_CHECK(set_capacity(writer, data.size(), subject));
      sized = true;
    }
    std::string_view rest = e->extra;
    while (!rest.empty()) {
      // Never waits: the bytes came out of a pipe of this capacity.
      const ssize_t n = ::write(writer, rest.data(), rest.size());
      if (n < 0 && errno == EINTR) {
        continue;
      }
      if (n < 0) {
        return sys_fail(fmt::format("write({}, {} bytes)", subject, rest.size()));
      }
      if (packets && static_cast<std::size_t>(n) != rest.size()) {
        return fail(Kind::corrupt, "{}: a packet of {} bytes is longer than a pipe can hold", subject, rest.size());
      }
      rest.remove_prefix(static_cast<std::size_t>(n));
    }
  }
  return {};
}

}  // namespace ferry::state

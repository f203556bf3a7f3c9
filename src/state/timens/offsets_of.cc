#include "state/timens/offsets_of.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "sys/file.h"

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x00000080  // clone3(2), Linux 5.6
#endif

namespace ferry::state::timens {
namespace {

constexpr std::size_t kTextSize = 256;

// In a copy of this process, which may have had several threads: system calls only.
[[noreturn]] void read_offsets_in(int ns, int to) {
  std::array<char, kTextSize> text;
  if (::setns(ns, CLONE_NEWTIME) != 0) {
    ::_exit(1);
  }
  const int file = ::open("/proc/self/timens_offsets", O_RDONLY | O_CLOEXEC);
  const ssize_t got = ::read(file, text.data(), text.size());
  ::_exit(got > 0 && ::write(to, text.data(), static_cast<std::size_t>(got)) == got ? 0 : 1);
}

// The file of a task shows what it has chosen for its children; where nobody has chosen the namespace that a task
// lives in, only who moves there can read it, and a process with several threads cannot move (setns(2)).
Result<Clocks> read_inside(const DumpTask& task) {
  FERRY_TRY(const UniqueFd ns, sys::open(fmt::format("/proc/{}/ns/time", task.pid), O_RDONLY));
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) {
    return sys_fail("pipe2");
  }
  const UniqueFd reader(ends[0]);
  UniqueFd writer(ends[1]);
  const pid_t child = ::fork();
  if (child < 0) {
    return sys_fail("fork");
  }
  if (child == 0) {
    read_offsets_in(ns.get(), writer.get());
  }
  writer.reset();
  std::array<char, kTextSize> text;
  ssize_t got = 0;
  do {
    got = ::read(reader.get(), text.data(), text.size());
  } while (got < 0 && errno == EINTR);
  while (::waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
  }
  if (got <= 0) {
    return fail(Kind::unsupported, "the offsets of the time namespace of {} cannot be read from inside",
                task.subject());
  }
  return parse_offsets({text.data(), static_cast<std::size_t>(got)});
}

}  // namespace

Result<Clocks> offsets_of(DumpContext& context, std::uint32_t ns) {
  const DumpTask* member = nullptr;
  for (const auto& task : context.tasks) {
    if (task->zombie || task->ids == nullptr) {
      continue;
    }
    const bool chose = task->ids->has_ferry_time_for_children_ns_id();
    if ((chose ? task->ids->ferry_time_for_children_ns_id() : task->ids->time_ns_id()) == ns) {
      FERRY_TRY(const std::string text, sys::read_file_at(task->proc.get(), "timens_offsets"));
      return parse_offsets(text);
    }
    member = task->ids->time_ns_id() == ns ? task.get() : member;
  }
  if (member == nullptr) {
    return fail(Kind::corrupt, "nobody lives in time namespace {}", ns);
  }
  return read_inside(*member);
}

}  // namespace ferry::state::timens

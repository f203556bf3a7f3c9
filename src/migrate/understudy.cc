#include "migrate/understudy.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <utility>

namespace ferry::migrate {
namespace {

constexpr std::size_t kPage = 4096;

[[noreturn]] void wait_in_the_wings(const UniqueFd& pipe, int* begun, const std::function<void()>& at_death,
                                    const std::function<void()>& late) {
  sigset_t all;
  sigfillset(&all);
  ::sigprocmask(SIG_SETMASK, &all, nullptr);
  ::setsid();
  char word = 0;
  ssize_t got = -1;
  do {
    got = ::read(pipe.get(), &word, 1);
  } while (got < 0 && errno == EINTR);
  if (got == 0) {
    (std::atomic_ref<int>(*begun).load() == 0 ? at_death : late)();
  }
  ::_exit(0);
}

}  // namespace

Result<Understudy> Understudy::post(const std::function<void()>& at_once, const std::function<void()>& at_death,
                                    const std::function<void()>& late) {
  void* const page = ::mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) {
    return sys_fail("mmap(understudy)");
  }
  auto* const begun = static_cast<int*>(page);
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) {
    const int problem = errno;
    ::munmap(page, kPage);
    return sys_fail(problem, "pipe2");
  }
  const UniqueFd reader(ends[0]);
  UniqueFd writer(ends[1]);
  const pid_t child = ::fork();
  if (child < 0) {
    const int problem = errno;
    ::munmap(page, kPage);
    return sys_fail(problem, "fork");
  }
  if (child == 0) {
    writer.reset();
    at_once();
    wait_in_the_wings(reader, begun, at_death, late);
  }
  return Understudy(child, std::move(writer), begun);
}

Understudy::Understudy(Understudy&& other) noexcept
    : child_(std::exchange(other.child_, -1)),
      pipe_(std::move(other.pipe_)),
      begun_(std::exchange(other.begun_, nullptr)) {}

void Understudy::take_the_stage() { std::atomic_ref<int>(*begun_).store(1); }

Understudy::~Understudy() {
  if (child_ <= 0) {
    return;
  }
  // A word, since an empty pipe that closes means our death.
  while (::write(pipe_.get(), "d", 1) < 0 && errno == EINTR) {
  }
  while (::waitpid(child_, nullptr, 0) < 0 && errno == EINTR) {
  }
  ::munmap(begun_, kPage);
}

}  // namespace ferry::migrate

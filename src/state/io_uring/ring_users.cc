#include "state/io_uring/ring_users.h"

#include <chrono>
#include <cstdint>
#include <cstring>
#include <string>
#include <thread>

#include "base/log.h"
#include "sys/bpf_iterator.h"

namespace ferry::state::io_uring {
namespace {

// Emits one word of each thread: the rings that it has used and that are still there, as the kernel lists them
// (io_uring_task.xa); 0 if there are none.
Result<UniqueFd> load(const sys::Btf& btf) {
  FERRY_TRY(const std::uint32_t task, btf.structure("task_struct"));
  FERRY_TRY(const std::uint32_t user, btf.structure("io_uring_task"));
  FERRY_TRY(const sys::Btf::Field its_user, btf.field(task, "io_uring"));
  FERRY_TRY(const sys::Btf::Field rings, btf.field(user, "xa.xa_head"));
  using Program = sys::IteratorProgram;
  constexpr std::size_t kRings = 0, kUser = 1;
  FERRY_TRY(Program program, Program::begin(btf, 1, 1, 1));
  program.copy(kUser, Program::kObject, its_user.offset, sizeof(void*));
  program.load(Program::kSpare, kUser);
  program.copy(kRings, Program::kSpare, rings.offset, sizeof(void*));
  return program.finish(btf, "bpf_iter_task");
}

bool any_in(const std::string& words) { return words.find_first_not_of('\0') != std::string::npos; }

// A ring that was closed leaves this list only when a worker of the kernel has come to it and the thread has answered
// (io_ring_exit_work, which asks again every 50 ms).
constexpr std::chrono::milliseconds kPatience{2000}, kPause{5};

bool goes_on_using_one(const UniqueFd& program, HostPid pid) {
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  for (;;) {
    const auto words = sys::iterate_threads(program.get(), pid);
    if (!words.has_value() || !any_in(*words)) {
      return false;
    }
    if (std::chrono::steady_clock::now() > deadline) {
      return true;
    }
    std::this_thread::sleep_for(kPause);
  }
}

}  // namespace

Result<void> check_hidden(const std::vector<HostPid>& tree, const sys::Btf& btf) {
  const auto program = load(btf);
  const auto all = program.has_value() ? sys::iterate_all_threads(program->get())
                                       : Result<std::string>(tl::unexpect, program.error());
  if (!all.has_value()) {
    log::info("this kernel does not show who uses an io_uring: {}", all.error().message());
    return {};
  }
  for (const HostPid pid : any_in(*all) ? tree : std::vector<HostPid>()) {
    if (goes_on_using_one(*program, pid)) {
      return fail(Kind::unsupported,
                  "pid {} uses an io_uring that it has no descriptor of (closed, or never had), which cannot "
                  "be carried over",
                  pid);
    }
  }
  return {};
}

}  // namespace ferry::state::io_uring

#include "engine/caretaker.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "state/interrupted/interrupted.h"
#include "sys/file.h"
#include "sys/proc.h"
#include "tracee/stop_tree.h"

namespace ferry::engine {

// Written by us alone, and read by the child only when we are gone.
struct Caretaker::Ledger {
  std::size_t used = 0;
  std::array<Loan, kLoans> loans;
};

namespace {

constexpr std::chrono::seconds kPatience{10};
constexpr std::chrono::milliseconds kPause{1};
constexpr std::uint64_t kNeverBlocked = std::uint64_t{1} << (SIGKILL - 1) | std::uint64_t{1} << (SIGSTOP - 1);
constexpr char kName[] = "ferry-caretaker";

// Whether the area is still there: pages of nobody that may be executed, from exactly where it was mapped.
bool is_mapped(const std::vector<sys::Mapping>& mappings, const tracee::Area& area) {
  return std::any_of(mappings.begin(), mappings.end(), [&](const sys::Mapping& m) {
    return m.start == area.base && m.end <= area.base + area.size && m.inode == 0 && !m.shared &&
           m.prot == (PROT_READ | PROT_EXEC);
  });
}

// What it is known by is what it is: whoever kills every "criu dump" does not mean this one.
void take_name() {
  ::prctl(PR_SET_NAME, kName);
  const auto text = sys::read_file("/proc/self/stat");
  if (!text.has_value()) {
    return;
  }
  // Where the arguments begin and end are numbers 48 and 49 (proc_pid_stat(5)); the name, which may hold blanks, is 2.
  std::istringstream in(text->substr(text->rfind(')') + 1));
  const std::vector<std::string> words{std::istream_iterator<std::string>(in), {}};
  constexpr std::size_t kArgumentsBegin = 48 - 3, kArgumentsEnd = 49 - 3;
  if (words.size() <= kArgumentsEnd) {
    return;
  }
  const std::uint64_t begin = std::strtoull(words[kArgumentsBegin].c_str(), nullptr, 10);
  const std::uint64_t end = std::strtoull(words[kArgumentsEnd].c_str(), nullptr, 10);
  if (begin != 0 && end > begin) {
    auto* at = reinterpret_cast<char*>(begin);
    std::memset(at, 0, end - begin);
    std::memcpy(at, kName, std::min<std::size_t>(sizeof kName, end - begin) - 1);
  }
}

}  // namespace

Result<Caretaker> Caretaker::start() {
  Caretaker out;
  void* shared =
      ::mmap(nullptr, sizeof(Ledger), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (shared == MAP_FAILED) {
    return sys_fail("mmap()");
  }
  out.ledger_ = static_cast<Ledger*>(shared);
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) {
    return sys_fail("pipe2()");
  }
  const UniqueFd life(ends[0]);
  out.life_ = UniqueFd(ends[1]);
  out.child_ = ::fork();
  if (out.child_ < 0) {
    return sys_fail("fork()");
  }
  if (out.child_ == 0) {
    serve(*out.ledger_, life.get());
  }
  return out;
}

Caretaker::Caretaker(Caretaker&& other) noexcept
    : ledger_(std::exchange(other.ledger_, nullptr)),
      next_(std::exchange(other.next_, 0)),
      life_(std::move(other.life_)),
      child_(std::exchange(other.child_, -1)) {}

Caretaker& Caretaker::operator=(Caretaker&& other) noexcept {
  std::swap(ledger_, other.ledger_);
  std::swap(next_, other.next_);
  std::swap(life_, other.life_);
  std::swap(child_, other.child_);
  return *this;
}

Caretaker::~Caretaker() {
  if (child_ > 0) {
    ::kill(child_, SIGKILL);
    (void)::waitpid(child_, nullptr, 0);
  }
  if (ledger_ != nullptr) {
    ::munmap(ledger_, sizeof(Ledger));
  }
}

void Caretaker::lend(HostPid pid, std::uint64_t start_time, const tracee::Area& area, std::uint64_t mask,
                     std::uint64_t vdso, std::uint64_t vdso_size) {
  if (ledger_ == nullptr || ledger_->used == kLoans) {
    return;
  }
  ledger_->loans[ledger_->used] = {pid.value, start_time, area, mask, vdso, vdso_size};
  ++ledger_->used;  // once all of it is there
}

void Caretaker::returned(HostPid pid) {
  if (ledger_ != nullptr && next_ < ledger_->used && ledger_->loans[next_].pid == pid.value) {
    ledger_->loans[next_++].pid = 0;
  }
}

void Caretaker::serve(const Ledger& ledger, int life) {
  ::setsid();  // what is meant for us alone, as by Ctrl-C, is not for it
  take_name();
  sigset_t all;
  ::sigfillset(&all);
  ::sigprocmask(SIG_SETMASK, &all, nullptr);
  constexpr int kLife = 3;
  if (life != kLife) {
    ::dup2(life, kLife);
  }
  ::syscall(SYS_close_range, 0U, 2U, 0U);
  ::syscall(SYS_close_range, 4U, ~0U, 0U);
  char byte;
  while (::read(kLife, &byte, 1) < 0 && errno == EINTR) {
  }
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  for (std::size_t i = 0; i < ledger.used; ++i) {
    const Loan& loan = ledger.loans[i];
    while (loan.pid != 0 && std::chrono::steady_clock::now() < deadline) {
      const auto done = take_back(loan);
      if (done.has_value() && *done) {
        break;
      }
      std::this_thread::sleep_for(kPause);  // it is still on its way through a batch, or frozen
    }
  }
  ::_exit(0);
}

// False: not yet.
Result<bool> Caretaker::take_back(const Loan& loan) {
  const HostPid pid(loan.pid);
  FERRY_TRY(const auto text, sys::read_file(fmt::format("/proc/{}/stat", pid)));
  FERRY_TRY(const auto stat, sys::parse_stat(text));
  if (stat.start_time != loan.start_time) {
    return true;
  }
  // A task is let go only after the files of its dying tracer are closed (do_exit in kernel/exit.c), which is what
  // woke us; a call that it was just to make, it then makes.  So it is looked at once it stands for us.
  FERRY_TRY(auto task, tracee::stop_process(pid, tracee::Deadline(std::chrono::seconds(1))));
  FERRY_TRY(auto process, tracee::Process::of(pid, std::move(task.threads)));
  FERRY_TRY(const auto maps, sys::read_file(fmt::format("/proc/{}/maps", pid)));
  FERRY_TRY(const auto mappings, sys::parse_maps(maps));
  const bool there = is_mapped(mappings, loan.area);
  bool inside = false;
  for (auto& thread : process.threads()) {
    FERRY_TRY(const auto registers, thread.registers());
    inside = inside || (registers.rip >= loan.area.base && registers.rip < loan.area.base + loan.area.size);
    // While it is traced, a filter would judge our call as one of its own (ptrace(2)).
    (void)thread.set_options(PTRACE_O_TRACESYSGOOD | PTRACE_O_SUSPEND_SECCOMP);
    FERRY_CHECK(state::interrupted::undo_eintr(thread));
  }
  if (there && !inside) {
    FERRY_TRY(const std::uint64_t at, process.find_syscall(loan.vdso, loan.vdso_size));
    process.inherit_area(loan.area);
    FERRY_CHECK(process.unmap_area(process.leader(), at));
  }
  FERRY_TRY(const std::uint64_t mask, process.leader().signal_mask());
  if (!inside && (mask | kNeverBlocked) == ~std::uint64_t{0}) {
    FERRY_CHECK(process.leader().set_signal_mask(loan.mask));
  }
  for (auto& thread : process.threads()) {
    FERRY_CHECK(thread.detach());
  }
  return !inside;
}

}  // namespace ferry::engine

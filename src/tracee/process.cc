#include "tracee/process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

#include "base/log.h"
#include "sys/file.h"
#include "sys/memory.h"
#include "tracee/sigframe.h"

namespace ferry::tracee {
namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kFrameRoom = 4096;       // a signal frame, rounded up to keep the next one aligned
constexpr std::size_t kSideBySide = 64;        // processes: enough that nobody waits for the slowest
constexpr std::chrono::seconds kCallTime{30};  // a call on a dead network file system must not hold us for ever
std::uint64_t all_but(int signal) { return ~(std::uint64_t{1} << (signal - 1)); }

// Gives a thread its registers and signal mask back.
//
// We may be killed between any two steps, and the thread then goes on as it stands.  With everything blocked it must
// not run code of its own: what it reads of its mask then (sigprocmask(2), before sigsuspend(2)) stays wrong for ever.
// So the mask changes only while the thread stands where a signal frame comes next: in a batch, or before a call with a
// way back.  For a call without, it changes next to the registers.
class Borrowed {
 public:
  // `mask`: what is blocked meanwhile.
  Borrowed(Thread& thread, std::uint64_t mask) : thread_(thread), batch_mask_(mask) {}
  Borrowed(const Borrowed&) = delete;
  Borrowed& operator=(const Borrowed&) = delete;
  // Changes nothing yet.
  Result<void> look() {
    FERRY_TRY(regs_, thread_.registers());
    FERRY_TRY(mask_, thread_.signal_mask());
    taken_ = true;
    return {};
  }
  // After look(): for a single call, before its registers are set.
  Result<void> block() { return mask_ == batch_mask_ ? Result<void>() : thread_.set_signal_mask(batch_mask_); }
  // After look(): to where a signal frame comes next.
  Result<void> move_to(const Registers& place) {
    FERRY_CHECK(thread_.set_registers(place));
    return block();
  }
  // Away from there.
  Result<void> leave() {
    if (!taken_) {
      return {};  // it was never anywhere else
    }
    if (mask_ != batch_mask_) {
      FERRY_CHECK(thread_.set_signal_mask(mask_));
    }
    FERRY_CHECK(thread_.set_registers(regs_));
    taken_ = false;
    return {};
  }
  ~Borrowed() { (void)give_back(); }
  Result<void> give_back() {
    if (!taken_ || thread_.tid().value == 0) {
      return {};
    }
    taken_ = false;
    FERRY_CHECK(thread_.set_registers(regs_));
    if (mask_ != batch_mask_) {
      FERRY_CHECK(thread_.set_signal_mask(mask_));
    }
    return {};
  }
  [[nodiscard]] const Registers& registers() const { return regs_; }
  [[nodiscard]] std::uint64_t mask() const { return mask_; }

 private:
  Thread& thread_;
  std::uint64_t batch_mask_;
  Registers regs_{};
  std::uint64_t mask_ = 0;
  bool taken_ = false;
};

Registers clean(Registers regs) {
  regs.orig_rax = ~0ULL;                 // not in a system call: the kernel must not restart one
  regs.eflags &= ~std::uint64_t{0x500};  // no direction flag, no single step
  return regs;
}

// Waits for the entry or exit of a call; what else arrives is put off or passed over.
Result<void> wait_for_syscall_stop(Thread& thread, const Deadline& deadline) {
  for (;;) {
    FERRY_TRY(const Stop stop, thread.wait(deadline));
    if (stop.why == Stop::Why::syscall) {
      return {};
    }
    if (stop.why == Stop::Why::signal) {
      if (stop.signal == SIGSEGV || stop.signal == SIGBUS || stop.signal == SIGILL) {
        return fail(Kind::os, "task {} got signal {} inside a call", thread.tid(), stop.signal);
      }
      thread.deferred_signals.push_back(stop.signal);
    }
    FERRY_CHECK(thread.resume(PTRACE_SYSCALL));
  }
}

}  // namespace

int quiet_signal(std::uint64_t taken) {
  for (const int signal : {SIGURG, SIGWINCH, SIGCHLD}) {
    if ((taken >> (signal - 1) & 1) == 0) {
      return signal;
    }
  }
  return SIGURG;
}

Result<Process> Process::of(HostPid pid, std::vector<Thread> threads) {
  Process out;
  out.pid_ = pid;
  out.threads_ = std::move(threads);
  FERRY_CHECK(out.reopen_memory());
  return out;
}

Process::~Process() { (void)give_back(); }

Result<void> Process::give_back() {
  if (!area_.mapped() || threads_.empty() || leader().tid().value == 0) {
    return {};
  }
  FERRY_TRY(const std::uint64_t at, find_syscall(vdso_, vdso_size_));
  return unmap_area(leader(), at);
}

Result<void> Process::reopen_memory() {
  FERRY_TRY(memory_, sys::open(fmt::format("/proc/{}/mem", pid_), O_RDWR));
  return {};
}

Result<std::int64_t> Process::call(Thread& thread, long number, const std::vector<std::uint64_t>& arguments,
                                   std::uint64_t at) {
  const Deadline deadline(kCallTime);
  StackFrame frame;  // outlives the stay there
  Borrowed borrowed(thread, ~std::uint64_t{0});
  FERRY_CHECK(borrowed.look());
  Registers regs = clean(borrowed.registers());
  if (way_back_.has_value() && !disposable_) {
    FERRY_TRY(const auto state, thread.extended_state());
    if (const auto placed = frame.place(pid_, *way_back_, borrowed.registers(), borrowed.mask(), state); !placed) {
      log::debug("no way back from a call of pid {}: {}", pid_, placed.error().message());
    }
  }
  const bool finds_back = frame.stack_pointer() != 0;
  if (finds_back) {
    at = way_back_->call;
    regs.rsp = frame.stack_pointer();
  }
  const auto argument = [&](std::size_t i) { return i < arguments.size() ? arguments[i] : 0; };
  if (at == 0) {
    // The loop's own instruction; its place is found once in the code itself.
    const auto code = loop_code();
    const std::byte wanted[] = {std::byte{0x0f}, std::byte{0x05}};
    const auto found = std::search(code.begin(), code.end(), std::begin(wanted), std::end(wanted));
    at = area_.base + static_cast<std::uint64_t>(found - code.begin());
  }
  regs.rip = at;
  regs.rax = static_cast<std::uint64_t>(number);
  regs.rdi = argument(0);
  regs.rsi = argument(1);
  regs.rdx = argument(2);
  regs.r10 = argument(3);
  regs.r8 = argument(4);
  regs.r9 = argument(5);
  if (finds_back) {
    FERRY_CHECK(borrowed.move_to(regs));
  } else {
    FERRY_CHECK(borrowed.block());
    FERRY_CHECK(thread.set_registers(regs));
  }
  for (int stops = 0; stops < 2; ++stops) {  // entry, exit
    FERRY_CHECK(thread.resume(PTRACE_SYSCALL));
    FERRY_CHECK(wait_for_syscall_stop(thread, deadline));
  }
  FERRY_TRY(const Registers after, thread.registers());
  FERRY_CHECK(finds_back ? borrowed.leave() : borrowed.give_back());
  return static_cast<std::int64_t>(after.rax);
}

Result<std::uint64_t> Process::find_syscall(std::uint64_t vdso, std::uint64_t vdso_size) {
  FERRY_TRY(const Registers regs, leader().registers());
  std::uint16_t bytes = 0;
  constexpr std::uint16_t kSyscall = 0x050f;
  const auto outside = [&](std::uint64_t address) {
    return !area_.mapped() || address < area_.base || address >= area_.base + area_.size;
  };
  if (outside(regs.rip) &&
      sys::read_memory(pid_, regs.rip - 2, std::as_writable_bytes(std::span(&bytes, 1)), memory_.get()).has_value() &&
      bytes == kSyscall) {
    return regs.rip - 2;
  }
  if (vdso_size == 0) {
    return fail(Kind::unsupported, "pid {} has no vDSO and stands behind no system call", pid_);
  }
  std::vector<std::byte> text(vdso_size);
  FERRY_CHECK(sys::read_memory(pid_, vdso, text, memory_.get()));
  for (std::size_t i = 0; i + 1 < text.size(); ++i) {
    if (text[i] == std::byte{0x0f} && text[i + 1] == std::byte{0x05}) {
      return vdso + i;
    }
  }
  return fail(Kind::unsupported, "the vDSO of pid {} holds no syscall instruction", pid_);
}

Result<void> Process::map_area(std::size_t size, std::uint64_t address, std::uint64_t vdso, std::uint64_t vdso_size) {
  vdso_ = vdso;
  vdso_size_ = vdso_size;
  FERRY_TRY(const std::uint64_t at, find_syscall(vdso, vdso_size));
  const int fixed = address != 0 ? MAP_FIXED_NOREPLACE : 0;
  const auto map = [&](std::uint64_t where, std::size_t length, int prot, int flags) -> Result<std::uint64_t> {
    FERRY_TRY(const std::int64_t got,
              call(leader(), SYS_mmap,
                   {where, length, static_cast<std::uint64_t>(prot),
                    static_cast<std::uint64_t>(MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags), ~0ULL, 0},
                   at));
    if (got < 0 && got > -4096) {
      return sys_fail(static_cast<int>(-got), fmt::format("mapping the batch area in pid {}", pid_));
    }
    return static_cast<std::uint64_t>(got);
  };
  // Never writable and executable at once, which PR_SET_MDWE or a security module may forbid: the code
  // page is filled through /proc/PID/mem, which a tracer may.
  FERRY_TRY(const std::uint64_t base, map(address, size, PROT_READ | PROT_EXEC, fixed));
  area_ = {base, size};
  FERRY_CHECK(map(base + kPage, size - kPage, PROT_READ | PROT_WRITE, MAP_FIXED));
  FERRY_CHECK(sys::write_memory(pid_, base, loop_code(), memory_.get()));
  return {};
}

Result<void> Process::unmap_area(Thread& thread, std::uint64_t syscall_at) {
  const Area area = std::exchange(area_, {});
  FERRY_TRY(const std::int64_t got, call(thread, SYS_munmap, {area.base, area.size}, syscall_at));
  if (got != 0) {
    return sys_fail(static_cast<int>(-got), fmt::format("unmapping the batch area of pid {}", pid_));
  }
  return {};
}

Result<Replies> Process::run(Thread& thread, const Batch& batch) {
  const Job job{&thread, &batch};
  FERRY_TRY(auto replies, run_all(std::span(&job, 1)));
  return std::move(replies.front());
}

Result<void> Process::aim(Thread& thread, const Batch& batch) {
  const std::uint64_t at = area_.base + kPage;
  FERRY_CHECK(sys::write_memory(pid_, at, batch.place(at, end_signal_, 0)));
  FERRY_TRY(const Registers now, thread.registers());
  Registers regs = clean(now);
  regs.rip = area_.base;
  regs.rbx = at;
  regs.r14 = at + batch.records_.size() * sizeof(Record);
  regs.r15 = 0;
  return thread.set_registers(regs);
}

Result<void> Process::start(Thread& thread, const Batch& batch) {
  FERRY_CHECK(aim(thread, batch));
  return thread.resume(PTRACE_CONT);
}

Result<void> Process::leave_in(Thread& thread, const Batch& batch) {
  FERRY_CHECK(aim(thread, batch));
  FERRY_CHECK(thread.set_signal_mask(~std::uint64_t{0}));
  area_ = {};
  return thread.detach();
}

// A thread on its way through a batch.
struct Process::Running {
  Running(const Job& of, std::uint64_t mask) : job(of), borrowed(*of.thread, mask) {}
  Job job;
  Borrowed borrowed;
  Registers begin{};         // with which it goes into the batch
  std::uint64_t base = 0;    // of its records
  std::uint64_t failed = 0;  // address of the record that ended it early
  [[nodiscard]] std::uint64_t end() const { return base + job.batch->records_.size() * sizeof(Record); }
};

// Writes its records to the end of `image`, which starts behind the code page; once that is in its place, enter().
Result<void> Process::prepare(const Job& job, Running& running, std::uint64_t base, std::vector<std::byte>& image,
                              const Registers* skeleton) const {
  running.base = base;
  if (skeleton == nullptr) {
    FERRY_CHECK(running.borrowed.look());
  }
  SignalFrame frame;
  const std::uint64_t frame_at = base + job.batch->size();
  if (!disposable_) {
    FERRY_TRY(const auto state, job.thread->extended_state());
    frame = make_signal_frame(frame_at, running.borrowed.registers(), running.borrowed.mask(), state);
  }
  const auto placed = job.batch->place(base, end_signal_, frame.stack_pointer);
  image.resize(static_cast<std::size_t>(base - area_.base - kPage));
  image.insert(image.end(), placed.begin(), placed.end());
  image.resize(static_cast<std::size_t>(frame_at - area_.base - kPage));
  image.insert(image.end(), frame.bytes.begin(), frame.bytes.end());
  Registers& regs = running.begin;
  regs = clean(skeleton != nullptr ? *skeleton : running.borrowed.registers());
  regs.rip = area_.base;
  regs.rbx = base;
  regs.r14 = running.end();
  regs.r15 = 0;
  return {};
}

Result<void> Process::enter(Running& running) {
  FERRY_CHECK(running.borrowed.move_to(running.begin));
  return running.job.thread->resume(PTRACE_CONT);
}

// Until the thread stands at its end signal.
Result<void> Process::await_batch(Running& running, const Deadline& deadline) const {
  Thread& thread = *running.job.thread;
  for (;;) {
    FERRY_TRY(const Stop stop, thread.wait(deadline));
    if (stop.why == Stop::Why::signal) {
      if (stop.signal == end_signal_) {
        FERRY_TRY(const Registers regs, thread.registers());
        if (regs.rbx == running.end() + Batch::kSignalRecord * sizeof(Record)) {
          running.failed = regs.r15;
          return running.borrowed.leave();
        }
      }
      if (stop.signal == SIGSEGV || stop.signal == SIGBUS || stop.signal == SIGILL) {
        return fail(Kind::os, "task {} got signal {} inside a batch", thread.tid(), stop.signal);
      }
      thread.deferred_signals.push_back(stop.signal);
    }
    FERRY_CHECK(thread.resume(PTRACE_CONT));
  }
}

Result<std::vector<Replies>> Process::run_all(std::span<const Job> jobs) {
  std::vector<Replies> out;
  out.reserve(jobs.size());
  const Deadline deadline(kCallTime);
  const std::uint64_t end = area_.base + area_.size;
  const std::size_t extra = disposable_ ? 0 : kFrameRoom;
  Registers skeleton{};
  if (disposable_ && !jobs.empty()) {
    FERRY_TRY(skeleton, leader().registers());
  }
  for (std::size_t next = 0; next < jobs.size();) {
    // As many jobs as fit into the area stand side by side and run at once.
    const std::size_t first = next;
    std::uint64_t at = area_.base + kPage;
    std::vector<std::unique_ptr<Running>> running;
    std::vector<std::byte> image;
    for (; next < jobs.size() && at + jobs[next].batch->size() + extra <= end; ++next) {
      running.push_back(std::make_unique<Running>(jobs[next], all_but(end_signal_)));
      FERRY_CHECK(prepare(jobs[next], *running.back(), at, image, disposable_ ? &skeleton : nullptr));
      at += jobs[next].batch->size() + extra;
    }
    if (next == first) {
      return fail(Kind::invalid, "a batch of {} bytes does not fit into the area of {}", jobs[next].batch->size(),
                  area_.size);
    }
    FERRY_CHECK(sys::write_memory(pid_, area_.base + kPage, image));
    for (const auto& r : running) {
      FERRY_CHECK(enter(*r));
    }
    for (const auto& r : running) {
      FERRY_CHECK(
          await_batch(*r, deadline).during("running {} calls in task {}", r->job.batch->calls(), r->job.thread->tid()));
    }
    // All at once: thousands of small reads would take longer than the batches.
    FERRY_CHECK(sys::read_memory(pid_, area_.base + kPage, image));
    for (const auto& r : running) {
      FERRY_TRY(Replies replies, collect(*r, image));
      out.push_back(std::move(replies));
    }
  }
  return out;
}

Result<void> Process::run_side_by_side(std::span<const Work> work) {
  const Deadline deadline(kCallTime);
  for (std::size_t first = 0; first < work.size(); first += kSideBySide) {
    const auto some = work.subspan(first, std::min(kSideBySide, work.size() - first));
    std::vector<Job> jobs;
    jobs.reserve(some.size());
    std::vector<std::unique_ptr<Running>> running;
    for (const Work& w : some) {
      Process& p = *w.process;
      const std::size_t extra = p.disposable_ ? 0 : kFrameRoom;
      if (w.batch->size() + extra > p.area_.size - kPage) {
        return fail(Kind::invalid, "a batch of {} bytes does not fit into the area of {}", w.batch->size(),
                    p.area_.size);
      }
      jobs.push_back({&p.leader(), w.batch});
      running.push_back(std::make_unique<Running>(jobs.back(), all_but(p.end_signal_)));
      std::vector<std::byte> image;
      FERRY_CHECK(p.prepare(jobs.back(), *running.back(), p.area_.base + kPage, image, nullptr));
      FERRY_CHECK(sys::write_memory(p.pid_, p.area_.base + kPage, image));
      FERRY_CHECK(enter(*running.back()));
    }
    for (std::size_t i = 0; i < some.size(); ++i) {
      Process& p = *some[i].process;
      FERRY_CHECK(p.await_batch(*running[i], deadline)
                      .during("running {} calls in task {}", some[i].batch->calls(), p.leader().tid()));
      if (running[i]->failed != 0) {
        std::vector<std::byte> image(some[i].batch->size());
        FERRY_CHECK(sys::read_memory(p.pid_, p.area_.base + kPage, image));
        FERRY_CHECK(p.collect(*running[i], image));  // which says what failed
      }
    }
  }
  return {};
}

Result<void> Process::unmap_side_by_side(std::span<const Unmapping> work) {
  const Deadline deadline(kCallTime);
  for (std::size_t first = 0; first < work.size(); first += kSideBySide) {
    const auto some = work.subspan(first, std::min(kSideBySide, work.size() - first));
    std::vector<std::unique_ptr<Borrowed>> borrowed;
    for (const Unmapping& u : some) {
      Thread& leader = u.process->leader();
      borrowed.push_back(std::make_unique<Borrowed>(leader, ~std::uint64_t{0}));
      FERRY_CHECK(borrowed.back()->look());
      Registers regs = clean(borrowed.back()->registers());
      const Area area = std::exchange(u.process->area_, {});
      regs.rip = u.syscall_at;
      regs.rax = SYS_munmap;
      regs.rdi = area.base;
      regs.rsi = area.size;
      FERRY_CHECK(borrowed.back()->block());
      FERRY_CHECK(leader.set_registers(regs));
      FERRY_CHECK(leader.resume(PTRACE_SYSCALL));
    }
    for (const Unmapping& u : some) {  // the entries
      FERRY_CHECK(wait_for_syscall_stop(u.process->leader(), deadline));
      FERRY_CHECK(u.process->leader().resume(PTRACE_SYSCALL));
    }
    for (std::size_t i = 0; i < some.size(); ++i) {
      Thread& leader = some[i].process->leader();
      FERRY_CHECK(wait_for_syscall_stop(leader, deadline));
      FERRY_TRY(const Registers after, leader.registers());
      FERRY_CHECK(borrowed[i]->give_back());
      if (after.rax != 0) {
        return sys_fail(static_cast<int>(-static_cast<std::int64_t>(after.rax)),
                        fmt::format("unmapping the batch area of pid {}", some[i].process->pid_));
      }
    }
  }
  return {};
}

Result<Replies> Process::collect(const Running& running, std::span<const std::byte> image) const {
  const Batch& batch = *running.job.batch;
  Replies out;
  out.records_.resize(batch.records_.size());
  out.data_.resize(batch.data_.size());
  const std::span<const std::byte> own = image.subspan(running.base - area_.base - kPage);
  std::ranges::copy(own.first(out.records_.size() * sizeof(Record)),
                    std::as_writable_bytes(std::span(out.records_)).begin());
  // Not memcpy(3), which takes no null pointer even for nothing: not every batch has data.
  std::ranges::copy(own.subspan((out.records_.size() + Batch::kEndRecords) * sizeof(Record), out.data_.size()),
                    out.data_.begin());
  if (running.failed != 0) {
    const std::uint64_t index = (running.failed - running.base) / sizeof(Record);
    if (index >= batch.records_.size()) {
      return fail(Kind::os, "task {} came back from a batch in disorder", running.job.thread->tid());
    }
    return sys_fail(
        static_cast<int>(-out.records_[index].result),
        fmt::format("{} (call {} of a batch in task {})", batch.names_[index], index, running.job.thread->tid()));
  }
  return out;
}

}  // namespace ferry::tracee

#include "state/thread_area/thread_area.h"

#include <asm/ldt.h>
#include <linux/rseq.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstddef>

#include "sys/memory.h"

namespace ferry::state::thread_area {
namespace {

constexpr int kGetTidAddress = 40;             // PR_GET_TID_ADDRESS
constexpr int kGetThreadArea = 25;             // PTRACE_GET_THREAD_AREA, asm/ptrace-abi.h
constexpr int kFirstTls = 12, kTlsSlots = 3;   // GDT_ENTRY_TLS_MIN, GDT_ENTRY_TLS_ENTRIES on x86-64
constexpr std::uint32_t kRobustHeadSize = 24;  // sizeof(struct robust_list_head)

Result<__ptrace_rseq_configuration> rseq_of(HostPid tid) {
  __ptrace_rseq_configuration out{};
  if (::ptrace(static_cast<__ptrace_request>(PTRACE_GET_RSEQ_CONFIGURATION), tid.value, sizeof out, &out) < 0) {
    return sys_fail(fmt::format("ptrace(GET_RSEQ_CONFIGURATION, {})", tid));
  }
  return out;
}

void put(pb::UserDescT& out, const user_desc& in) {
  out.set_entry_number(in.entry_number);
  out.set_base_addr(in.base_addr);
  out.set_limit(in.limit);
  out.set_seg_32bit(in.seg_32bit != 0);
  out.set_contents_h((in.contents & 2) != 0);
  out.set_contents_l((in.contents & 1) != 0);
  out.set_read_exec_only(in.read_exec_only != 0);
  out.set_limit_in_pages(in.limit_in_pages != 0);
  out.set_seg_not_present(in.seg_not_present != 0);
  out.set_usable(in.useable != 0);
}

bool empty(const pb::UserDescT& slot) {
  return slot.base_addr() == 0 && slot.limit() == 0 && !slot.seg_32bit() && !slot.contents_h() && !slot.contents_l() &&
         slot.read_exec_only() && !slot.limit_in_pages() && slot.seg_not_present() && !slot.usable();
}

}  // namespace

Result<void> settle_rseq(RestoreTask& task, const RestoreThread& thread, tracee::Registers& registers) {
  const std::uint64_t section_at = thread.core->thread_core().rseq_entry().rseq_cs_pointer();
  if (section_at == 0) {
    return {};
  }
  FERRY_TRY(const auto section, sys::read_object<rseq_cs>(task.pid, section_at, task.process.memory()));
  if (registers.rip - section.start_ip < section.post_commit_offset) {
    registers.rip = section.abort_ip;
  }
  return {};
}

Result<void> settle_rseq(DumpTask& task, DumpThread& thread) {
  FERRY_TRY(const auto config, rseq_of(thread.tid));
  thread.rseq = {config.rseq_abi_pointer, config.rseq_abi_size, config.signature};
  // A sequence holds no system calls (rseq.rst), so whoever is in one is in none.
  const bool in_call = thread.registers.orig_rax != ~std::uint64_t{0};
  if (config.rseq_abi_pointer == 0 || in_call) {
    return {};
  }
  const std::uint64_t pointer_at = config.rseq_abi_pointer + offsetof(struct rseq, rseq_cs);
  const int memory = task.process.memory();
  FERRY_TRY(const auto section_at, sys::read_object<std::uint64_t>(task.pid, pointer_at, memory));
  if (section_at == 0) {
    return {};
  }
  FERRY_TRY(const auto section, sys::read_object<rseq_cs>(task.pid, section_at, memory));
  if (thread.registers.rip - section.start_ip >= section.post_commit_offset) {
    return {};  // the pointer is left from an earlier section; the kernel clears it by itself
  }
  thread.registers.rip = section.abort_ip;
  FERRY_CHECK(task.thread(thread).set_registers(thread.registers));
  constexpr std::uint64_t kNone = 0;
  return sys::write_memory(task.pid, pointer_at, std::as_bytes(std::span(&kNone, 1)), memory)
      .during("leaving a restartable sequence of task {}", thread.tid);
}

Answers ask_thread(DumpTask&, DumpThread& thread, tracee::Batch& batch) {
  const tracee::Data address = batch.room(sizeof(std::uint64_t));
  batch.must("prctl(PR_GET_TID_ADDRESS)", SYS_prctl, {kGetTidAddress, address, 0, 0, 0});
  return [&thread, address](const tracee::Replies& replies) -> Result<void> {
    thread.core->mutable_thread_info()->set_clear_tid_addr(replies.object<std::uint64_t>(address));
    return {};
  };
}

void answer_like(const DumpTask&, DumpThread& thread) {
  thread.core->mutable_thread_info()->set_clear_tid_addr(thread.words->clear_child_tid);
}

Result<void> collect_thread(DumpTask& task, DumpThread& thread, DumpContext&) {
  auto& core = *thread.core->mutable_thread_core();
  std::uint64_t head = thread.words.has_value() ? thread.words->robust_list : 0;
  std::size_t size = kRobustHeadSize;
  if (!thread.words.has_value() && ::syscall(SYS_get_robust_list, thread.tid.value, &head, &size) != 0) {
    return sys_fail(fmt::format("get_robust_list({})", thread.tid));
  }
  core.set_futex_rla(head);
  core.set_futex_rla_len(static_cast<std::uint32_t>(size));
  if (thread.rseq.pointer != 0) {
    core.mutable_rseq_entry()->set_rseq_abi_pointer(thread.rseq.pointer);
    core.mutable_rseq_entry()->set_rseq_abi_size(thread.rseq.size);
    core.mutable_rseq_entry()->set_signature(thread.rseq.signature);
  }
  auto& info = *thread.core->mutable_thread_info();
  if (!task.asks(thread)) {
    *info.mutable_tls() = task.model_of(thread).core->thread_info().tls();
    return {};
  }
  info.clear_tls();
  for (int slot = kFirstTls; slot < kFirstTls + kTlsSlots; ++slot) {
    user_desc descriptor{};
    if (::ptrace(static_cast<__ptrace_request>(kGetThreadArea), thread.tid.value, slot, &descriptor) < 0) {
      return sys_fail(fmt::format("ptrace(GET_THREAD_AREA, {}, {})", thread.tid, slot));
    }
    put(*info.add_tls(), descriptor);
  }
  return {};
}

Result<void> restore_thread(RestoreTask&, RestoreThread& thread, RestoreContext&, tracee::Batch& batch) {
  const auto& core = thread.core->thread_core();
  const auto& info = thread.core->thread_info();
  batch.must("set_tid_address", SYS_set_tid_address, {info.clear_tid_addr()});
  if (core.futex_rla() != 0) {
    if (core.futex_rla_len() != kRobustHeadSize) {
      return fail(Kind::corrupt, "task {} has a robust list head of {} bytes", thread.ns_tid, core.futex_rla_len());
    }
    batch.must("set_robust_list", SYS_set_robust_list, {core.futex_rla(), core.futex_rla_len()});
  }
  for (const pb::UserDescT& slot : info.tls()) {
    if (empty(slot)) {
      continue;
    }
    user_desc descriptor{};
    descriptor.entry_number = slot.entry_number();
    descriptor.base_addr = slot.base_addr();
    descriptor.limit = slot.limit();
    descriptor.seg_32bit = slot.seg_32bit() ? 1 : 0;
    descriptor.contents = static_cast<unsigned>((slot.contents_h() ? 2 : 0) | (slot.contents_l() ? 1 : 0)) & 3;
    descriptor.read_exec_only = slot.read_exec_only() ? 1 : 0;
    descriptor.limit_in_pages = slot.limit_in_pages() ? 1 : 0;
    descriptor.seg_not_present = slot.seg_not_present() ? 1 : 0;
    descriptor.useable = slot.usable() ? 1 : 0;
    batch.must("set_thread_area", SYS_set_thread_area, {batch.object(descriptor)});
  }
  if (core.has_rseq_entry()) {
    const auto& rseq = core.rseq_entry();
    batch.must("rseq", SYS_rseq, {rseq.rseq_abi_pointer(), rseq.rseq_abi_size(), 0, rseq.signature()});
  }
  return {};
}

}  // namespace ferry::state::thread_area

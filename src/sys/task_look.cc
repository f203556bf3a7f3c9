#include "sys/task_look.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "base/log.h"
#include "sys/bpf_iterator.h"
#include "sys/btf.h"

namespace ferry::sys {
namespace {

// As the program emits it: TaskWords without what is filled in afterwards.
constexpr std::size_t kEmitted = sizeof(TaskWords) / 8 - 1;
constexpr std::size_t kFilledIn = offsetof(TaskWords, children_offset) / 8;
// Words of the program's own, behind what it emits.
constexpr std::size_t kPid = kEmitted, kLevel = kEmitted + 1, kOwn = 2;
static_assert(sizeof(TaskWords) % 8 == 0);

// Where a field of TaskWords stands among the emitted words.
constexpr std::size_t word(std::size_t offset) {
  const std::size_t at = offset / 8;
  return at > kFilledIn ? at - 1 : at;
}

struct Wanted {
  const char* field;  // of task_struct
  std::size_t at;     // in TaskWords
  std::uint32_t room;
};
constexpr Wanted kWanted[] = {
    {"pid", offsetof(TaskWords, tid), 8},
    {"sas_ss_sp", offsetof(TaskWords, stack_base), 8},
    {"sas_ss_size", offsetof(TaskWords, stack_size), 8},
    {"sas_ss_flags", offsetof(TaskWords, stack_flags), 8},
    {"pdeath_signal", offsetof(TaskWords, death_signal), 8},
    {"clear_child_tid", offsetof(TaskWords, clear_child_tid), 8},
    {"robust_list", offsetof(TaskWords, robust_list), 8},
    {"timer_slack_ns", offsetof(TaskWords, timer_slack), 8},
    {"pending.signal", offsetof(TaskWords, pending), 8},
    {"comm", offsetof(TaskWords, name), 16},
    {"children.next", offsetof(TaskWords, first_child), 8},
    {"cred", offsetof(TaskWords, nature.credentials), 8},
    {"nsproxy", offsetof(TaskWords, nature.namespaces), 8},
    {"cgroups", offsetof(TaskWords, nature.groups), 8},
    {"seccomp.mode", offsetof(TaskWords, nature.seccomp_mode), 8},
    {"seccomp.filter", offsetof(TaskWords, nature.seccomp_filter), 8},
    {"flags", offsetof(TaskWords, nature.flags), 8},
    {"atomic_flags", offsetof(TaskWords, nature.atomic_flags), 8},
    {"thread_info.flags", offsetof(TaskWords, nature.thread_flags), 8},
    {"thread_info.syscall_work", offsetof(TaskWords, nature.call_work), 8},
    {"personality", offsetof(TaskWords, nature.personality), 8},
    {"thread.tls_array", offsetof(TaskWords, nature.segments), 24},
};

}  // namespace

Result<TaskLook> TaskLook::open() {
  FERRY_TRY(const Btf btf, Btf::of_kernel());
  FERRY_TRY(const std::uint32_t task, btf.structure("task_struct"));
  FERRY_TRY(const std::uint32_t pid, btf.structure("pid"));
  FERRY_TRY(const std::uint32_t upid, btf.structure("upid"));
  FERRY_TRY(const Btf::Field children, btf.field(task, "children"));
  FERRY_TRY(const Btf::Field its_pid, btf.field(task, "thread_pid"));
  FERRY_TRY(const Btf::Field level, btf.field(pid, "level"));
  FERRY_TRY(const Btf::Field numbers, btf.field(pid, "numbers"));
  FERRY_TRY(const Btf::Field number, btf.field(upid, "nr"));
  using Program = IteratorProgram;
  FERRY_TRY(Program program, Program::begin(btf, 1, kEmitted, kOwn));
  for (const Wanted& w : kWanted) {
    FERRY_TRY(const Btf::Field field, btf.field(task, w.field));
    if (field.size == 0 || field.size > w.room) {
      return fail(Kind::unsupported, "the field {} of this kernel's tasks has {} bytes", w.field, field.size);
    }
    program.copy(word(w.at), Program::kObject, field.offset, field.size);
  }
  if (const auto policy = btf.field(task, "mempolicy"); policy.has_value()) {  // a kernel with NUMA
    program.copy(word(offsetof(TaskWords, nature.memory_policy)), Program::kObject, policy->offset, policy->size);
  }
  program.store(word(offsetof(TaskWords, task)), Program::kObject);
  // Its number in its own pid namespace: the last of as many as it has levels.
  program.copy(kPid, Program::kObject, its_pid.offset, 8);
  program.load(Program::kSpare, kPid);
  program.copy(kLevel, Program::kSpare, level.offset, 4);
  program.load(Program::kOther, kLevel);
  program.multiply(Program::kOther, static_cast<std::int32_t>(btf.size_of(upid)));
  program.add(Program::kSpare, Program::kOther);
  program.copy(word(offsetof(TaskWords, ns_tid)), Program::kSpare, numbers.offset + number.offset, 4);
  TaskLook out;
  FERRY_TRY(out.program_, program.finish(btf, "bpf_iter_task"));
  out.children_offset_ = children.offset;
  return out;
}

bool TaskLook::ready() {
  if (!tried_) {
    tried_ = true;
    auto opened = open();
    if (!opened.has_value()) {
      log::debug("threads are looked at one by one: {}", opened.error().message());
      return false;
    }
    program_ = std::move(opened->program_);
    children_offset_ = opened->children_offset_;
  }
  return is_open();
}

Result<std::vector<TaskWords>> TaskLook::threads_of(HostPid pid) const {
  FERRY_TRY(const std::string bytes, iterate_threads(program_.get(), pid));
  constexpr std::size_t kSize = kEmitted * 8;
  std::vector<TaskWords> out(bytes.size() / kSize);
  for (std::size_t i = 0; i < out.size(); ++i) {
    auto* to = reinterpret_cast<char*>(&out[i]);
    const char* from = bytes.data() + i * kSize;
    std::memcpy(to, from, kFilledIn * 8);
    std::memcpy(to + (kFilledIn + 1) * 8, from + kFilledIn * 8, kSize - kFilledIn * 8);
    out[i].children_offset = children_offset_;
  }
  return out;
}

std::unordered_set<pid_t> TaskLook::childless_threads_of(HostPid pid) const {
  std::unordered_set<pid_t> out;
  const auto words = is_open() ? threads_of(pid) : Result<std::vector<TaskWords>>();
  for (const TaskWords& w : words.has_value() ? *words : std::vector<TaskWords>()) {
    if (!w.has_children()) {
      out.insert(static_cast<pid_t>(w.tid));
    }
  }
  return out;
}

}  // namespace ferry::sys

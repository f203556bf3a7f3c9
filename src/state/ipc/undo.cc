#include "state/ipc/undo.h"

#include <sys/sem.h>
#include <sys/syscall.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <set>

#include "base/log.h"
#include "state/dump.h"
#include "state/dump_host.h"
#include "state/nsids/nsids.h"
#include "state/restore.h"
#include "sys/bpf_iterator.h"
#include "sys/btf.h"

namespace ferry::state::ipc {
namespace {

constexpr std::int32_t kMost = 32767;          // SEMVMX and SEMAEM (linux/sem.h)
constexpr std::size_t kLongestList = 100'000;  // above SEMMNI, the number of sets that there can be

Result<std::uint64_t> offset(const sys::Btf& btf, std::uint32_t type, std::string_view field) {
  FERRY_TRY(const sys::Btf::Field found, btf.field(type, field));
  return std::uint64_t{found.offset};
}

bool has_sets() {
  seminfo info{};
  return ::semctl(0, 0, SEM_INFO, &info) >= 0 && info.semusz > 0;  // semctl(2): how many sets there are
}

}  // namespace

Result<Undos::Reader> Undos::open() {
  FERRY_TRY(const sys::Btf btf, sys::Btf::of_kernel());
  FERRY_TRY(const std::uint32_t task, btf.structure("task_struct"));
  FERRY_TRY(const std::uint32_t list, btf.structure("sem_undo_list"));
  FERRY_TRY(const std::uint32_t undo, btf.structure("sem_undo"));
  FERRY_TRY(const sys::Btf::Field its_list, btf.field(task, "sysvsem.undo_list"));
  FERRY_TRY(const sys::Btf::Field adjustments, btf.field(undo, "semadj"));
  Reader out;
  FERRY_TRY(out.of_list, offset(btf, list, "list_proc"));
  FERRY_TRY(out.in_list, offset(btf, undo, "list_proc"));
  FERRY_TRY(out.semid, offset(btf, undo, "semid"));
  out.adjustments = adjustments.offset;
  out.inline_adjustments = adjustments.size != sizeof(std::uint64_t);
  using Program = sys::IteratorProgram;
  FERRY_TRY(Program program, Program::begin(btf, 1, 1, 0));
  program.copy(0, Program::kObject, its_list.offset, sizeof(std::uint64_t));
  FERRY_TRY(out.program, program.finish(btf, "bpf_iter_task"));
  FERRY_TRY(out.memory, sys::KernelMemory::open());
  return out;
}

Result<void> Undos::prepare(Inside& inside) {
  FERRY_TRY(const bool wanted, inside.get<bool>([]() -> Result<bool> { return has_sets(); }));
  if (!wanted || asked_) {
    return {};
  }
  asked_ = true;
  auto opened = open();
  if (!opened.has_value()) {
    log::warning(
        "this kernel does not show what semaphores get back when a process ends (SEM_UNDO), so that is lost: {}",
        opened.error().message());
    return {};
  }
  reader_.emplace(std::move(*opened));
  return {};
}

// Nobody changes it: the processes that share it stand still, and only a set that is removed meanwhile takes itself
// out.
Result<std::vector<pb::FerrySemUndo>> Undos::read(const Reader& reader, std::uint64_t list, const Counts& counts) {
  std::vector<pb::FerrySemUndo> out;
  const std::uint64_t head = list + reader.of_list;
  FERRY_TRY(std::uint64_t at, reader.memory.read<std::uint64_t>(head));
  for (std::size_t i = 0; at != head; ++i) {
    if (i >= kLongestList) {
      return fail(Kind::os, "the list of what semop(2) is to undo has no end");
    }
    const std::uint64_t undo = at - reader.in_list;
    FERRY_TRY(const auto id, reader.memory.read<std::int32_t>(undo + reader.semid));
    if (const auto set = counts.find(id); set != counts.end()) {  // -1: its set is removed
      std::uint64_t where = undo + reader.adjustments;
      if (!reader.inline_adjustments) {
        FERRY_TRY(where, reader.memory.read<std::uint64_t>(where));
      }
      FERRY_TRY(const auto values, reader.memory.read_array<std::int16_t>(where, set->second));
      if (std::ranges::any_of(values, [](std::int16_t value) { return value != 0; })) {
        pb::FerrySemUndo& entry = out.emplace_back();
        entry.set_semid(static_cast<std::uint32_t>(id));
        entry.mutable_adjustments()->Add(values.begin(), values.end());
      }
    }
    FERRY_TRY(at, reader.memory.read<std::uint64_t>(at));
  }
  return out;
}

Result<void> Undos::collect(DumpContext& context, std::uint32_t ns, Inside& inside,
                            const std::vector<Semaphores>& sets) {
  if (sets.empty()) {
    return {};
  }
  FERRY_CHECK(prepare(inside));  // if the first set came after it was asked for, or is not in the root's namespace
  if (!reader_.has_value()) {
    return {};
  }
  Counts counts;
  for (const Semaphores& set : sets) {
    counts.emplace(static_cast<std::int32_t>(set.entry.desc().id()), set.entry.nsems());
  }
  std::map<std::uint64_t, const DumpTask*> owners;
  for (const auto& task : context.tasks) {
    if (task->zombie || namespace_of(*task->ids, NsKind::ipc) != ns) {
      continue;
    }
    FERRY_TRY(const std::string words, sys::iterate_threads(reader_->program.get(), task->pid));
    std::vector<std::uint64_t> lists(words.size() / sizeof(std::uint64_t));
    std::memcpy(lists.data(), words.data(), lists.size() * sizeof(std::uint64_t));
    // A thread that has none, of the kernel's own or one that has ended, has nothing to say.
    std::set<std::uint64_t> of_process(lists.begin(), lists.end());
    of_process.erase(0);
    for (const std::uint64_t list : of_process) {
      FERRY_TRY(auto undos, read(*reader_, list, counts).during("{}", task->subject()));
      if (undos.empty()) {
        continue;
      }
      if (of_process.size() > 1) {
        return fail(
            Kind::unsupported,
            "the threads of {} have several lists of what semop(2) is to undo (SEM_UNDO), which cannot be carried",
            task->subject());
      }
      if (const auto [owner, is_new] = owners.emplace(list, task.get()); !is_new) {
        return fail(Kind::unsupported,
                    "{} and {} share what semop(2) is to undo (SEM_UNDO, CLONE_SYSVSEM), which cannot be carried",
                    owner->second->subject(), task->subject());
      }
      for (pb::FerrySemUndo& undo : undos) {
        *task->core->mutable_tc()->add_ferry_sem_undo() = std::move(undo);
      }
    }
  }
  return {};
}

std::vector<Step> steps_to(std::int32_t adjustment, std::int32_t value) {
  std::vector<Step> out;
  // The operation that is undone goes the other way than what undoes it.
  const bool undo_down = adjustment > 0;
  for (std::int32_t left = std::abs(adjustment); left > 0;) {
    const bool up_first = kMost - value >= value;
    const std::int32_t part = std::min(left, up_first ? kMost - value : value);
    const auto up = static_cast<std::int16_t>(part);
    const auto down = static_cast<std::int16_t>(-part);
    out.push_back(up_first ? Step{up, down, !undo_down} : Step{down, up, undo_down});
    left -= part;
  }
  return out;
}

Result<void> restore_undos(const RestoreTask& task, const RestoreContext& context, tracee::Batch& batch) {
  const auto& undos = task.core->tc().ferry_sem_undo();
  if (undos.empty()) {
    return {};
  }
  const auto& sets = context.set.entries({image::Type::ipcns_sem, namespace_of(*task.ids, NsKind::ipc)});
  for (const pb::FerrySemUndo& undo : undos) {
    const auto set = std::ranges::find_if(sets, [&](const image::Entry& entry) {
      return static_cast<const pb::IpcSemEntry&>(*entry.message).desc().id() == undo.semid();
    });
    const auto count = static_cast<std::size_t>(undo.adjustments_size());
    if (set == sets.end() || count > set->extra.size() / sizeof(std::uint16_t)) {
      return fail(Kind::corrupt, "pid {} adjusts semaphores that the set {} does not have", task.ns_pid(),
                  undo.semid());
    }
    for (std::size_t i = 0; i < count; ++i) {
      std::uint16_t value = 0;
      std::memcpy(&value, set->extra.data() + i * sizeof value, sizeof value);
      const std::int32_t adjustment = undo.adjustments(static_cast<int>(i));
      if (value > kMost || adjustment < -kMost - 1 || adjustment > kMost) {
        return fail(Kind::corrupt, "pid {} adjusts semaphore {} of the set {} by {}", task.ns_pid(), i, undo.semid(),
                    adjustment);
      }
      for (const Step& step : steps_to(adjustment, value)) {
        const auto flags = [&](bool undone) { return static_cast<short>(IPC_NOWAIT | (undone ? SEM_UNDO : 0)); };
        const auto number = static_cast<unsigned short>(i);
        const std::array<sembuf, 2> pair{sembuf{number, step.first, flags(step.undo_first)},
                                         sembuf{number, step.second, flags(!step.undo_first)}};
        batch.must("semop(SEM_UNDO)", SYS_semop, {undo.semid(), batch.object(pair), pair.size()});
      }
    }
  }
  return {};
}

}  // namespace ferry::state::ipc

#include "engine/checkpoint_story.h"

#include <signal.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <chrono>

#include "base/log.h"
#include "engine/dump_tree.h"
#include "engine/limits.h"
#include "engine/list_tree.h"
#include "engine/preflight.h"
#include "engine/set_id.h"
#include "image/page_store.h"
#include "image/proto/inventory.pb.h"
#include "image/proto/mm.pb.h"
#include "image/set.h"
#include "state/cgroup/cgroup.h"
#include "state/cgroup/frozen.h"
#include "state/cpu/cpu.h"
#include "state/cpu/cpuinfo.h"
#include "state/creds/creds.h"
#include "state/dump.h"
#include "state/file_kind.h"
#include "state/files/fs.h"
#include "state/files/outside.h"
#include "state/interrupted/interrupted.h"
#include "state/ipc/ipc.h"
#include "state/limits/limits.h"
#include "state/memory/memory.h"
#include "state/memory/relatives.h"
#include "state/mount/mount.h"
#include "state/net/net.h"
#include "state/nsids/nsids.h"
#include "state/pidns/pidns.h"
#include "state/seccomp/seccomp.h"
#include "state/signals/signals.h"
#include "state/thread_area/thread_area.h"
#include "state/timens/timens.h"
#include "state/timers/timers.h"
#include "state/uts/uts.h"
#include "state/vdso/vdso.h"
#include "sys/file.h"
#include "tracee/let_go.h"
#include "tracee/stop_tree.h"

namespace ferry::engine {
namespace {

using Clock = std::chrono::steady_clock;
using image::Name;
using image::Type;
using state::DumpTask;
using state::DumpThread;

constexpr std::chrono::seconds kDeathTime{10};
constexpr std::size_t kWorthAWitness = 16;  // threads

std::uint64_t micros(Clock::duration d) {
  return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(d).count());
}

Result<void> collect_cpu(DumpTask& task, DumpThread& thread) {
  pb::ThreadInfoX86& info = *thread.core->mutable_thread_info();
  state::cpu::save_registers(thread.registers, *info.mutable_gpregs());
  FERRY_TRY(const auto area, task.thread(thread).extended_state());
  return state::cpu::save_extended(area, *info.mutable_fpregs()).during("processor state of task {}", thread.tid);
}

}  // namespace

CheckpointStory::~CheckpointStory() {
  (void)join_witness();
  (void)join_memory();
  if (!let_go_) {
    if (network_announced_) {
      (void)tell(Stage::network_unlock);
    }
    // While the threads are still stopped; a frozen task could not give its batch area back.
    for (auto& task : tasks_) {
      (void)task->process.give_back();
    }
    (void)freezer_.restore_state();
  }
}

Result<DumpReport> CheckpointStory::run() {
  const Step steps[] = {
      {"prepare", &CheckpointStory::prepare},
      {"stop", &CheckpointStory::stop},
      {"describe the tree", &CheckpointStory::describe_tree},
      {"tell that it is stopped", &CheckpointStory::notify_stopped},
      {"settle system calls", &CheckpointStory::settle_threads},
      {"ask the processes", &CheckpointStory::ask},
      {"give back", &CheckpointStory::give_back},
      {"collect tasks", &CheckpointStory::collect_tasks},
      {"collect namespaces", &CheckpointStory::collect_namespaces},
      {"save memory", &CheckpointStory::save_memory},
      {"save images", &CheckpointStory::save_images},
      {"tell that images are complete", &CheckpointStory::notify_complete},
      {"end", &CheckpointStory::end},
  };
  for (const Step& step : steps) {
    const auto begin = Clock::now();
    FERRY_CHECK((this->*step.run)());
    log::debug("{}: {} us", step.name, micros(Clock::now() - begin));
  }
  return report_;
}

Result<void> CheckpointStory::tell(Stage stage) {
  FERRY_CHECK(listener_.on({stage, std::nullopt, -1}));
  return {};
}

// Whatever can be done while the tree still runs.
Result<void> CheckpointStory::prepare() {
  FERRY_CHECK(raise_descriptor_limit());
  FERRY_CHECK(preflight(options_, look_, mapping_look_, ways_));
  if (options_.lazy_pages) {
    if (options_.leave_running) {
      return fail(Kind::invalid, "--lazy-pages with --leave-running: the tree would run twice");
    }
    if (!options_.page_server.has_value()) {
      return fail(Kind::invalid, "--lazy-pages needs the --port at which the pages are to be had");
    }
    FERRY_TRY(supply_, lazy::PageSupply::open(*options_.page_server));
  }
  FERRY_CHECK(tell(Stage::pre_dump));
  const bool followed = options_.track_memory && (options_.leave_running || options_.leave_stopped);
  FERRY_CHECK(succession_.begin(options_, followed));
  context_.increment = succession_.increment();
  if (!succession_.has_parent()) {  // else most of it is left to the parent
    FERRY_CHECK(keeper_.expect(private_memory(options_.pid, look_)));
  }
  files_.prepare(options_.pid);
  FERRY_CHECK(host_.prepare(options_.pid, options_.cgroup_mode != state::CgroupMode::ignore, options_.cgroup_yard));
  for (const HostPid pid : list_tree(options_.pid, &look_)) {
    (void)host_.expect(pid);  // who is there in the freeze counts
  }
  if (options_.freeze_cgroup.empty()) {
    FERRY_TRY(options_.freeze_cgroup, state::cgroup::frozen_group(host_, options_.pid));
  }
  return {};
}

Result<void> CheckpointStory::stop() {
  FERRY_CHECK(keeper_.about_to_stop());
  const auto begin = Clock::now();
  FERRY_TRY(freezer_, tracee::Freezer::open(options_.freeze_cgroup));
  FERRY_TRY(stopped_, tracee::stop_tree(options_.pid, freezer_, tracee::Deadline(options_.timeout), look_));
  frozen_since_ = Clock::now();
  report_.freezing_us = micros(frozen_since_ - begin);
  return {};
}

Result<void> CheckpointStory::describe_tree() {
  pb::InventoryEntry inventory;
  inventory.set_img_version(2);
  inventory.set_fdinfo_per_id(true);
  inventory.set_ns_per_id(true);
  pb::TaskKobjIdsEntry& own = *inventory.mutable_root_ids();
  own.set_vm_id(1);
  own.set_files_id(1);
  own.set_fs_id(1);
  own.set_sighand_id(1);
  inventory.set_lsmtype(pb::LSM_NO_LSM);
  // In the numbering of the images.
  inventory.set_network_lock_method(static_cast<std::uint32_t>(options_.network_lock));
  inventory.mutable_plugins_entry();
  inventory.set_tcp_close(options_.tcp_close);
  FERRY_TRY(const std::string id, random_set_id());
  inventory.set_dump_criu_run_id(id);
  inventory.set_ferry_id(id);
  inventory.set_ferry_version(FERRY_VERSION);
  set_.add(Name{Type::inventory, 0}, std::move(inventory));
  if ((options_.cpu_capability & static_cast<std::uint32_t>(state::CpuCapability::image)) != 0) {
    FERRY_CHECK(state::cpu::collect_cpuinfo(set_));
  }
  FERRY_TRY(tasks_, build_dump_tree(std::move(stopped_), options_, look_, mapping_look_, set_));
  FERRY_CHECK(state::collect_ids(context_));
  std::size_t threads = 0;
  for (const auto& task : tasks_) {
    threads += static_cast<std::size_t>(
        std::count_if(task->threads.begin(), task->threads.end(), [&](const DumpThread& t) { return task->asks(t); }));
  }
  if (threads < kWorthAWitness) {
    return look_at_threads();
  }
  witness_ = std::async(std::launch::async, [this] { return look_at_threads(); });
  return {};
}

Result<void> CheckpointStory::look_at_threads() {
  for (const auto& task : tasks_) {
    if (!task->zombie) {
      FERRY_CHECK(state::check_threads(*task));
      FERRY_CHECK(read_thread_statuses(*task).during("reading /proc of pid {}", task->pid));
    }
  }
  return {};
}

Result<void> CheckpointStory::join_witness() { return witness_.valid() ? witness_.get() : Result<void>(); }

Result<void> CheckpointStory::join_memory() { return memory_.valid() ? memory_.get() : Result<void>(); }

// Whether there is anything to be kept away (state/network_lock) shows only when the sockets are looked at;
// the caller is told here, as CRIU tells it.
Result<void> CheckpointStory::notify_stopped() {
  FERRY_TRY(const auto namespaces, state::NamespaceIds::of(set_));
  network_announced_ = namespaces.is_new(state::NsKind::net);
  if (network_announced_) {
    FERRY_CHECK(tell(Stage::network_lock));
  }
  FERRY_TRY(auto answer, listener_.on({Stage::query_ext_files, std::nullopt, -1}));
  for (std::string& external : answer.external) {
    options_.external.push_back(std::move(external));
  }
  return {};
}

// Before anything runs in a thread: what the stop itself did to it.
Result<void> CheckpointStory::settle_threads() {
  for (auto& task : tasks_) {
    for (DumpThread& thread : task->threads) {
      FERRY_CHECK(state::vdso::leave(*task, thread));
      FERRY_CHECK(state::interrupted::after_stop(*task, thread));
      FERRY_CHECK(state::thread_area::settle_rseq(*task, thread));
    }
  }
  return {};
}

// From outside: procfs, ptrace, and duplicates of descriptors.
Result<void> CheckpointStory::collect_tasks() {
  FERRY_CHECK(join_witness());
  state::seccomp::touch(context_);
  for (auto& task : tasks_) {
    if (!task->zombie) {
      FERRY_CHECK(collect_task(*task).during("saving pid {}", task->pid));
    }
  }
  add_ended_leaders(tasks_, set_);
  return files_.collect_all(context_);
}

Result<void> CheckpointStory::collect_task(DumpTask& task) {
  for (DumpThread& thread : task.threads) {
    FERRY_CHECK(collect_cpu(task, thread));
    FERRY_CHECK(state::interrupted::save(task, thread));
    FERRY_CHECK(state::thread_area::collect_thread(task, thread, context_));
    FERRY_CHECK(state::signals::collect_thread(task, thread, context_));
    FERRY_CHECK(state::creds::collect_thread(task, thread, context_));
    FERRY_CHECK(state::seccomp::collect_thread(task, thread, context_));
    FERRY_CHECK(state::limits::collect_thread(task, thread, context_));
  }
  FERRY_CHECK(state::signals::collect(task, context_));
  FERRY_CHECK(state::timers::collect(task, context_));
  FERRY_CHECK(state::limits::collect(task, context_));
  FERRY_CHECK(state::memory::collect(task, context_));
  return state::fs::collect(task, context_);
}

Result<void> CheckpointStory::collect_namespaces() {
  FERRY_CHECK(host_.settle(context_.root().pid));
  host_.inside().stay_awake();
  struct Room {
    const char* name;
    Result<void> (*collect)(state::DumpContext&);
  };
  constexpr Room rooms[] = {{"pid", state::pidns::collect},    {"uts", state::uts::collect},
                            {"ipc", state::ipc::collect},      {"time", state::timens::collect},
                            {"net", state::net::collect},      {"mount", state::mount::collect},
                            {"cgroup", state::cgroup::collect}};
  for (const Room& room : rooms) {
    const auto begin = Clock::now();
    FERRY_CHECK(room.collect(context_));
    log::debug("  {} namespace: {} us", room.name, micros(Clock::now() - begin));
  }
  host_.inside().sleep_again();
  return state::check_files_are_inside(context_);
}

Result<void> CheckpointStory::save_memory() {
  const auto begin = Clock::now();
  FERRY_CHECK(join_memory());
  FERRY_CHECK(succession_.track_all(tasks_));
  const auto readings = state::memory::readings_of(tasks_);
  for (std::size_t i = 0; i < tasks_.size(); ++i) {
    const auto& task = tasks_[i];
    if (task->zombie) {
      continue;
    }
    FERRY_TRY(const bool kept, keeper_.memory(*task, set_).during("saving the memory of pid {}", task->pid));
    if (!kept) {
      FERRY_CHECK(state::memory::save_pages(*task, context_, readings[i], report_)
                      .during("saving the memory of pid {}", task->pid));
    }
  }
  report_.memdump_us = micros(Clock::now() - begin);
  return {};
}

// From here on nothing of ours is in the tree, and each thread stands as the stop left it (a call that
// only the stop ended is made again): should we die while memory is read, it just goes on.
Result<void> CheckpointStory::give_back() {
  for (auto& task : tasks_) {
    if (task->zombie) {
      continue;
    }
    FERRY_CHECK(task->process.give_back());
    caretaker_.returned(task->process.pid());
  }
  if (auto work = keeper_.ahead_of_memory(tasks_)) {
    memory_ = std::async(std::launch::async, std::move(work));
  }
  return {};
}

Result<void> CheckpointStory::save_images() {
  const auto begin = Clock::now();
  FERRY_CHECK(keeper_.images(set_));
  report_.memwrite_us = micros(Clock::now() - begin);
  return {};
}

Result<void> CheckpointStory::end() {
  FERRY_TRY(const Keeper::Verdict verdict, keeper_.end());
  if (options_.lazy_pages) {
    FERRY_CHECK(supply_pages());
  }
  if (verdict != Keeper::Verdict::run_on) {
    files_.keep_links();
  }
  if (options_.leave_running || options_.leave_stopped || verdict == Keeper::Verdict::run_on) {
    if (network_announced_) {
      (void)tell(Stage::network_unlock);
    }
    FERRY_CHECK(files_.before_going_on(context_));
    FERRY_CHECK(freezer_.restore_state());
    let_go_ = true;
    std::vector<tracee::Process*> processes;
    for (auto& task : tasks_) {
      if (options_.leave_stopped && !task->zombie) {
        ::kill(task->pid.value, SIGSTOP);
      }
      processes.push_back(&task->process);
    }
    FERRY_CHECK(tracee::let_go(processes, tracee::Deadline(kDeathTime)));
    report_.frozen_us = micros(Clock::now() - frozen_since_);
    FERRY_TRY(const auto* inventory, set_.one<pb::InventoryEntry>(Name{Type::inventory, 0}));
    if (auto handed = succession_.hand_on(inventory->ferry_id()); !handed.has_value()) {
      log::warning("the next set has all memory again: {}", handed.error().message());
    }
    return {};
  }
  report_.frozen_us = micros(Clock::now() - frozen_since_);
  FERRY_CHECK(files_.before_end(context_));
  return kill_tree();
}

// The tree is restored elsewhere and fetches its pages from here.
Result<void> CheckpointStory::supply_pages() {
  for (const auto& task : tasks_) {
    const Name name{Type::pagemap, static_cast<std::uint64_t>(task->ns_pid.value)};
    for (const auto* entry : set_.list<pb::PagemapEntry>(name)) {
      if (entry->flags() == image::kLazy) {
        supply_.offer(task->ns_pid, task->pid, task->process.memory(), entry->vaddr(),
                      entry->vaddr() + entry->nr_pages() * image::kPageSize);
      }
    }
  }
  report_.pages_lazy = supply_.offered_bytes() / image::kPageSize;
  FERRY_CHECK(tell(Stage::status_ready));
  // From here on somebody else may run with this memory: should this process be killed, the kernel lets the tree go,
  // and this keeps it standing (ptrace(2), "a tracee is restarted").
  for (const auto& task : tasks_) {
    if (!task->zombie) {
      ::kill(task->pid.value, SIGSTOP);
    }
  }
  log::info("{} pages wait to be fetched", report_.pages_lazy);
  if (auto served = supply_.serve(); !served.has_value()) {
    let_go_ = true;  // it must not run, whatever has failed
    return served;
  }
  return {};
}

// The images are complete: the tree ends here.  Children first would let parents see them die, so all
// are killed while all are stopped.
Result<void> CheckpointStory::kill_tree() {
  for (auto& task : tasks_) {
    if (!task->zombie && ::kill(task->pid.value, SIGKILL) != 0) {
      return sys_fail(fmt::format("kill({}, SIGKILL)", task->pid));
    }
  }
  let_go_ = true;
  std::vector<tracee::Thread*> threads;
  for (auto& task : tasks_) {
    for (auto& thread : task->process.threads()) {
      threads.push_back(&thread);
    }
  }
  FERRY_CHECK(tracee::await_end(threads, tracee::Deadline(kDeathTime)).during("waiting for the tree to end"));
  succession_.end();
  return {};
}

}  // namespace ferry::engine

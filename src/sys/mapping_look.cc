#include "sys/mapping_look.h"

#include <fcntl.h>
#include <linux/mman.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <utility>

#include "base/log.h"
#include "sys/btf.h"
#include "sys/example.h"
#include "sys/file.h"
#include "sys/userfaultfd.h"

namespace ferry::sys {
namespace {

struct Words {
  std::uint64_t start = 0, end = 0, flags = 0;
  std::uint64_t policy = 0;  // address of a memory policy
};
constexpr std::size_t kWords = sizeof(Words) / 8;

// Below, smaps costs less than the iterator does beforehand.
constexpr std::size_t kManyMappings = 256;
constexpr std::size_t kManyPages = (32U << 20) / 4096;

Result<std::vector<Words>> words_of(Iteration& iteration) {
  std::vector<Words> out;
  for (;;) {
    FERRY_TRY(const std::string part, iteration.next());
    if (part.empty()) {
      return out;
    }
    for (std::size_t at = 0; at + sizeof(Words) <= part.size(); at += sizeof(Words)) {
      Words w;
      std::memcpy(&w, part.data() + at, sizeof w);
      if (!out.empty() && w.start < out.back().end) {
        // Behind the last one kernels begin anew at the last that an earlier read ended with (task_vma_seq_get_next in
        // kernel/bpf/task_iter.c), for ever.
        return out;
      }
      out.push_back(w);
    }
  }
}

constexpr std::size_t kSize = 4096;

void* memory(int prot, int flags, int fd = -1) {
  // Between neighbours is always one that nobody may read, so that none are joined.
  (void)::mmap(nullptr, kSize, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return ::mmap(nullptr, kSize, prot, flags | (fd < 0 ? MAP_ANONYMOUS : 0), fd, 0);
}

// One of every kind that there may be, as far as this kernel has it.
bool make_mappings() {
  constexpr int kWrite = PROT_READ | PROT_WRITE;
  constexpr int kAdvice[] = {MADV_DONTFORK,   MADV_DONTDUMP,  MADV_WIPEONFORK, MADV_HUGEPAGE,
                             MADV_NOHUGEPAGE, MADV_MERGEABLE, MADV_SEQUENTIAL, MADV_RANDOM};
  for (const int advice : kAdvice) {
    (void)::madvise(memory(kWrite, MAP_PRIVATE), kSize, advice);
  }
  const int file = ::open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
  for (const int prot : {PROT_NONE, PROT_READ, kWrite, PROT_READ | PROT_EXEC}) {
    for (const int flags : {MAP_PRIVATE, MAP_SHARED, MAP_PRIVATE | MAP_NORESERVE, MAP_PRIVATE | MAP_GROWSDOWN}) {
      (void)memory(prot, flags);
    }
    (void)memory(prot, MAP_PRIVATE, file);
    (void)memory(prot, MAP_SHARED, file);
  }
  (void)::mlock(memory(kWrite, MAP_PRIVATE), kSize);
  (void)::mlock2(memory(kWrite, MAP_PRIVATE), kSize, MLOCK_ONFAULT);
  (void)memory(kWrite, MAP_PRIVATE | MAP_HUGETLB);
  constexpr long kMseal = 462;  // mseal(2), since Linux 6.10
  (void)::syscall(kMseal, memory(kWrite, MAP_PRIVATE), kSize, 0UL);
  // The descriptor stays open: the watch lasts as long as it does.
  const int uffd = static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
  if (uffd >= 0 && uffd_negotiate(uffd).has_value()) {
    const auto at = reinterpret_cast<std::uint64_t>(memory(kWrite, MAP_PRIVATE));
    (void)uffd_watch(uffd, at, at + kSize);
  }
  return true;
}

}  // namespace

Result<MappingLook> MappingLook::open() {
  FERRY_TRY(const Btf btf, Btf::of_kernel());
  FERRY_TRY(const std::uint32_t mapping, btf.structure("vm_area_struct"));
  using Program = IteratorProgram;
  constexpr int kMappingOfContext = 2;  // behind what is common to all, and the task
  FERRY_TRY(Program program, Program::begin(btf, kMappingOfContext, kWords, 0));
  std::size_t word = 0;
  for (const char* name : {"vm_start", "vm_end", "vm_flags", "vm_policy"}) {
    if (std::string_view(name) == "vm_policy" && !btf.field(mapping, name).has_value()) {
      break;  // a kernel without NUMA: the word stays zero
    }
    FERRY_TRY(const Btf::Field field, btf.field(mapping, name));
    if (field.size != 8) {
      return fail(Kind::unsupported, "the field {} of this kernel's mappings has {} bytes", name, field.size);
    }
    program.copy(word++, Program::kObject, field.offset, 8);
  }
  MappingLook out;
  FERRY_TRY(out.program_, program.finish(btf, "bpf_iter_task_vma"));
  FERRY_TRY(out.flags_, out.learn());
  out.tried_ = true;
  return out;
}

Result<MappingFlags> MappingLook::learn() const {
  FERRY_TRY(const Example model, Example::start(make_mappings, "a process that shows how mappings are marked"));
  FERRY_TRY(Iteration iteration, Iteration::prepare(program_.get(), Iteration::Of::mappings, model.pid()));
  FERRY_TRY(const auto words, words_of(iteration));
  FERRY_TRY(const std::string smaps, read_file(fmt::format("/proc/{}/smaps", model.pid())));
  FERRY_TRY(const auto mappings, parse_maps(smaps));
  std::vector<MappingFlags::Example> examples;
  auto mapping = mappings.begin();
  for (const Words& w : words) {
    while (mapping != mappings.end() && mapping->start < w.start) {
      ++mapping;
    }
    if (mapping != mappings.end() && mapping->start == w.start && mapping->end == w.end) {
      examples.push_back({w.flags, mapping->vm_flags});
    }
  }
  if (examples.empty()) {
    return fail(Kind::unsupported, "an iterator over mappings shows none");
  }
  return MappingFlags::learn(examples);
}

void MappingLook::expect(HostPid pid) {
  const auto statm = read_file(fmt::format("/proc/{}/statm", pid));
  const auto maps = read_file(fmt::format("/proc/{}/maps", pid));
  if (!statm.has_value() || !maps.has_value()) {
    return;  // it has just ended
  }
  // The second number is the resident pages (proc_pid_statm(5)).
  const std::size_t second = statm->find(' ');
  const std::size_t pages = second == std::string::npos ? 0 : std::strtoull(statm->c_str() + second, nullptr, 10);
  const auto mappings = static_cast<std::size_t>(std::count(maps->begin(), maps->end(), '\n'));
  if (pages < kManyPages && mappings < kManyMappings) {
    return;
  }
  if (!std::exchange(tried_, true)) {
    auto opened = open();
    if (!opened.has_value()) {
      log::debug("the flags of mappings are read from smaps: {}", opened.error().message());
      return;
    }
    *this = std::move(*opened);
  }
  if (!program_) {
    return;
  }
  auto iteration = Iteration::prepare(program_.get(), Iteration::Of::mappings, pid);
  if (iteration.has_value()) {
    ready_.insert_or_assign(pid, std::move(*iteration));
  }
}

Result<void> MappingLook::add_flags(Iteration& iteration, std::vector<Mapping>& mappings) const {
  FERRY_TRY(const auto words, words_of(iteration));
  auto word = words.begin();
  for (Mapping& m : mappings) {
    if (m.name == "[vsyscall]") {
      continue;  // is shown, and is none of the process's mappings
    }
    if (word == words.end() || word->start != m.start || word->end != m.end) {
      return fail(Kind::unsupported, "the look does not show {:x}-{:x}", m.start, m.end);
    }
    auto names = flags_.names_of(word->flags);
    if (!names.has_value()) {
      return fail(Kind::unsupported, "{:x}-{:x} is marked with {:#x}", m.start, m.end, word->flags);
    }
    m.vm_flags = std::move(*names);
    m.may_have_policy = word->policy != 0 || m.shared;  // that of shared memory belongs to its file
    ++word;
  }
  return {};
}

Result<std::vector<Mapping>> MappingLook::mappings_of(HostPid pid, int proc) {
  if (const auto ready = ready_.find(pid); ready != ready_.end()) {
    Iteration iteration = std::move(ready->second);
    ready_.erase(ready);
    FERRY_TRY(const std::string maps, read_file_at(proc, "maps"));
    FERRY_TRY(auto mappings, parse_maps(maps));
    const auto added = add_flags(iteration, mappings);
    if (added.has_value()) {
      return mappings;
    }
    log::debug("pid {} is looked at in smaps: {}", pid, added.error().message());
  }
  FERRY_TRY(const std::string smaps, read_file_at(proc, "smaps"));
  return parse_maps(smaps);
}

}  // namespace ferry::sys

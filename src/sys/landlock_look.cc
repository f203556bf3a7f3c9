#include "sys/landlock_look.h"

#include <linux/landlock.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <optional>

#include "sys/bpf_iterator.h"
#include "sys/btf.h"
#include "sys/example.h"

namespace ferry::sys {
namespace {

// More than all security modules together keep in one task's credentials before the domain.
constexpr std::size_t kWords = 24;
using Words = std::array<std::uint64_t, kWords>;

Words words_at(const std::string& bytes, std::size_t thread) {
  Words out{};
  (void)bytes.copy(reinterpret_cast<char*>(out.data()), sizeof out, thread * sizeof out);
  return out;
}

std::size_t count(const std::string& bytes) { return bytes.size() / sizeof(Words); }

// With a child, which has inherited that.
bool restrict_self() {
  landlock_ruleset_attr rules{};
  rules.handled_access_fs = LANDLOCK_ACCESS_FS_EXECUTE;
  const long ruleset = ::syscall(SYS_landlock_create_ruleset, &rules, sizeof rules.handled_access_fs, 0);
  return ruleset >= 0 && ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         ::syscall(SYS_landlock_restrict_self, ruleset, 0) == 0 && Example::bear_child();
}

bool is_kernel_address(std::uint64_t word) { return word >> 47 == 0x1ffff; }

// The word that is zero without restrictions, the same for who inherited them, and another for others.  What lies
// behind the credentials may be anything, but hardly that.
Result<std::size_t> find_domain(int program) {
  constexpr const char* kWhat = "a process of ours that has restricted itself with Landlock";
  FERRY_TRY(const Example one, Example::start(restrict_self, kWhat));
  FERRY_TRY(const HostPid heir, one.child());
  FERRY_TRY(const Example other, Example::start(restrict_self, kWhat));
  enum { kOwn, kOne, kHeir, kOther, kExamples };
  const std::array<HostPid, kExamples> pids{HostPid(::getpid()), one.pid(), heir, other.pid()};
  std::array<Words, kExamples> seen{};
  for (std::size_t i = 0; i < kExamples; ++i) {
    FERRY_TRY(const std::string bytes, iterate_threads(program, pids[i]));
    if (count(bytes) == 0) {
      return fail(Kind::unsupported, "an iterator over threads shows none of pid {}", pids[i]);
    }
    seen[i] = words_at(bytes, 0);
  }
  std::optional<std::size_t> found;
  for (std::size_t word = 0; word < kWords; ++word) {
    if (seen[kOwn][word] != 0 || !is_kernel_address(seen[kOne][word]) || seen[kHeir][word] != seen[kOne][word] ||
        !is_kernel_address(seen[kOther][word]) || seen[kOther][word] == seen[kOne][word]) {
      continue;
    }
    if (found.has_value()) {
      return fail(Kind::unsupported, "words {} and {} of the credentials may be the domain", *found, word);
    }
    found = word;
  }
  return found.has_value() ? Result<std::size_t>(*found)
                           : fail(Kind::unsupported, "no word of the credentials shows the domain");
}

}  // namespace

bool kernel_has_landlock() {
  return ::syscall(SYS_landlock_create_ruleset, nullptr, 0, LANDLOCK_CREATE_RULESET_VERSION) > 0;
}

Result<LandlockLook> LandlockLook::open(const Btf& btf) {
  FERRY_TRY(const std::uint32_t task, btf.structure("task_struct"));
  FERRY_TRY(const std::uint32_t cred, btf.structure("cred"));
  FERRY_TRY(const Btf::Field credentials, btf.field(task, "cred"));
  FERRY_TRY(const Btf::Field security, btf.field(cred, "security"));
  using Program = IteratorProgram;
  FERRY_TRY(Program program, Program::begin(btf, 1, kWords, 1));
  program.copy(kWords, Program::kObject, credentials.offset, sizeof(void*));
  program.load(Program::kSpare, kWords);
  program.copy(kWords, Program::kSpare, security.offset, sizeof(void*));
  program.load(Program::kSpare, kWords);
  program.copy(0, Program::kSpare, 0, sizeof(Words));
  LandlockLook out;
  FERRY_TRY(out.program_, program.finish(btf, "bpf_iter_task"));
  FERRY_TRY(out.domain_, find_domain(out.program_.get()));
  return out;
}

Result<bool> LandlockLook::any() const {
  FERRY_TRY(const std::string bytes, iterate_all_threads(program_.get()));
  return is_in(bytes);
}

Result<bool> LandlockLook::is_restricted(HostPid pid) const {
  FERRY_TRY(const std::string bytes, iterate_threads(program_.get(), pid));
  return is_in(bytes);
}

bool LandlockLook::is_in(const std::string& threads) const {
  for (std::size_t i = 0; i < count(threads); ++i) {
    if (words_at(threads, i)[domain_] != 0) {
      return true;
    }
  }
  return false;
}

}  // namespace ferry::sys

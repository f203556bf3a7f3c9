#include <sys/syscall.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <map>
#include <set>
#include <string_view>

#include "state/vdso/vdso.h"

namespace ferry::state::vdso {
namespace {

using Code = std::vector<std::uint8_t>;

constexpr std::uint32_t kGetrandom = 318;  // __NR_getrandom

void append_number(Code& code, std::uint64_t number, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; ++i) {
    code.push_back(static_cast<std::uint8_t>(number >> (8 * i)));
  }
}

void append(Code& code, std::initializer_list<std::uint8_t> bytes) { code.insert(code.end(), bytes); }

// A function may clobber r11 and needs none of its arguments there (System V ABI, AMD64, 3.2.3).
Code jump(std::uint64_t to) {
  Code code{0x49, 0xbb};  // movabs $to, %r11
  append_number(code, to, 8);
  append(code, {0x41, 0xff, 0xe3});  // jmp *%r11
  return code;
}

// The kernel takes the arguments of these where the function got them.
Code system_call(std::uint32_t number) {
  Code code{0xb8};  // mov $number, %eax
  append_number(code, number, 4);
  append(code, {0x0f, 0x05, 0xc3});  // syscall; ret
  return code;
}

Code no_such_call() {
  Code code{0xb8};  // mov $-ENOSYS, %eax
  append_number(code, static_cast<std::uint32_t>(-ENOSYS), 4);
  append(code, {0x48, 0x98, 0xc3});  // cltq; ret
  return code;
}

// getrandom(buffer, length, flags, state, length of state): the state is what the vDSO of the other kernel makes of it,
// so the kernel is asked each time.  With -1 as the last argument a program asks what a state is to look like.
Code getrandom_call() {
  const Code call = system_call(kGetrandom);
  Code code{0x49, 0x83, 0xf8, 0xff, 0x74, static_cast<std::uint8_t>(call.size())};  // cmp $-1, %r8; je behind the call
  code.insert(code.end(), call.begin(), call.end());
  const Code none = no_such_call();
  code.insert(code.end(), none.begin(), none.end());
  return code;
}

std::string_view base_name(std::string_view name) {
  constexpr std::string_view kPrefix = "__vdso_";
  return name.starts_with(kPrefix) ? name.substr(kPrefix.size()) : name;
}

Code without_ours(std::string_view name) {
  static const std::map<std::string_view, std::uint32_t> kCalls = {{"clock_gettime", SYS_clock_gettime},
                                                                   {"gettimeofday", SYS_gettimeofday},
                                                                   {"time", SYS_time},
                                                                   {"clock_getres", SYS_clock_getres},
                                                                   {"getcpu", SYS_getcpu}};
  const auto call = kCalls.find(base_name(name));
  return call == kCalls.end() ? no_such_call() : system_call(call->second);
}

}  // namespace

Result<void> lead_out(std::span<std::byte> content, std::span<const std::byte> ours, std::uint64_t at) {
  FERRY_TRY(const auto theirs, functions(content));
  std::map<std::string, std::uint64_t> here;
  if (!ours.empty()) {
    FERRY_TRY(const auto own, functions(ours));
    for (const Function& f : own) {
      here.emplace(f.name, at + f.offset);
    }
  }
  std::set<std::uint64_t> done;  // several names may stand for one function
  for (const Function& f : theirs) {
    if (!done.insert(f.offset).second) {
      continue;
    }
    const auto found = here.find(f.name);
    const Code code = base_name(f.name) == "getrandom" ? getrandom_call()
                      : found != here.end()            ? jump(found->second)
                                                       : without_ours(f.name);
    if (f.size < code.size()) {
      return fail(Kind::unsupported,
                  "function {} of the vDSO of another kernel is too small ({} bytes) to lead out of it", f.name,
                  f.size);
    }
    std::memcpy(content.data() + f.offset, code.data(), code.size());
  }
  return {};
}

}  // namespace ferry::state::vdso

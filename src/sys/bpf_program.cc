#include "sys/bpf_program.h"

#include <linux/bpf.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <string>

namespace ferry::sys {
namespace {

Result<UniqueFd> load(bpf_attr attributes, std::string& why) {
  if (!why.empty()) {
    attributes.log_level = 1;
    attributes.log_size = static_cast<std::uint32_t>(why.size());
    attributes.log_buf = reinterpret_cast<std::uint64_t>(why.data());
  }
  const long fd = bpf(BPF_PROG_LOAD, attributes);
  if (fd < 0) {
    return sys_fail("bpf(BPF_PROG_LOAD)");
  }
  return UniqueFd(static_cast<int>(fd));
}

}  // namespace

long bpf(int command, bpf_attr& attributes) { return ::syscall(SYS_bpf, command, &attributes, sizeof attributes); }

bpf_insn instruction(std::uint8_t code, std::uint8_t to, std::uint8_t from, std::int16_t offset, std::int32_t value) {
  bpf_insn out{};
  out.code = code;
  out.dst_reg = to & 0xf;
  out.src_reg = from & 0xf;
  out.off = offset;
  out.imm = value;
  return out;
}

Result<UniqueFd> load_program(std::span<const bpf_insn> code, bpf_attr attributes) {
  // The helpers that read the kernel's memory serve only programs that may be had under the GPL
  // (Documentation/bpf/bpf_licensing.rst), so these few instructions are offered under it as well.
  constexpr char kLicense[] = "Dual MIT/GPL";
  constexpr char kName[] = "ferry_look";
  attributes.insn_cnt = static_cast<std::uint32_t>(code.size());
  attributes.insns = reinterpret_cast<std::uint64_t>(code.data());
  attributes.license = reinterpret_cast<std::uint64_t>(kLicense);
  std::memcpy(attributes.prog_name, kName, sizeof kName);
  std::string why;
  auto loaded = load(attributes, why);
  if (loaded.has_value()) {
    return loaded;
  }
  why.assign(16384, '\0');
  loaded = load(attributes, why);
  if (!loaded.has_value()) {
    why.resize(std::min(why.find('\0'), why.size()));
    constexpr std::size_t kShown = 400;
    return std::move(loaded).during("verifying it: {}", why.substr(why.size() < kShown ? 0 : why.size() - kShown));
  }
  return loaded;
}

}  // namespace ferry::sys

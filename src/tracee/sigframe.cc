#include "tracee/sigframe.h"

#include <cpuid.h>

#include <algorithm>
#include <array>
#include <cstring>

namespace ferry::tracee {
namespace {

struct SigContext {
  std::uint64_t r8, r9, r10, r11, r12, r13, r14, r15;
  std::uint64_t di, si, bp, bx, dx, ax, cx, sp, ip, flags;
  std::uint16_t cs, gs, fs, ss;
  std::uint64_t err, trapno, oldmask, cr2;
  std::uint64_t fpstate;
  std::uint64_t reserved[8];
};
static_assert(sizeof(SigContext) == 256);

struct UserContext {
  std::uint64_t flags, link;
  std::uint64_t stack_pointer;
  std::int32_t stack_flags, padding;
  std::uint64_t stack_size;
  SigContext context;
  std::uint64_t mask;
};
static_assert(sizeof(UserContext) == 304);

struct SoftwareBytes {
  std::uint32_t magic1, extended_size;
  std::uint64_t features;
  std::uint32_t state_size;
  std::uint32_t padding[7];
};
static_assert(sizeof(SoftwareBytes) == 48);

constexpr std::uint64_t kHasExtendedState = 1;     // UC_FP_XSTATE
constexpr std::uint64_t kHasStackSegment = 2 | 4;  // UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS
constexpr std::size_t kSoftwareOffset = 464;
constexpr std::size_t kHeaderOffset = 512;
constexpr std::uint32_t kMagic1 = 0x46505853;
constexpr std::uint32_t kMagic2 = 0x46505845;
// Components up to PKRU.  Those above have to be asked for (AMX) or are the kernel's own, and make the
// area larger than the kernel takes from a thread that did not ask.
constexpr unsigned kLastComponent = 9;
constexpr std::size_t kReturnAddress = 8;  // where a handler would have it: struct rt_sigframe, pretcode

struct Extent {
  std::uint64_t features = 3;
  std::size_t size = kHeaderOffset + 64;
};

struct Component {
  std::uint32_t offset = 0, size = 0;  // size 0: this processor lacks it
};

// Asked once: in a virtual machine every CPUID instruction costs a trip to the hypervisor.
const std::array<Component, kLastComponent + 1>& components() {
  static const auto table = [] {
    std::array<Component, kLastComponent + 1> out{};
    unsigned a = 0;
    unsigned b = 0;
    unsigned c = 0;
    unsigned d = 0;
    __cpuid_count(0xd, 0, a, b, c, d);
    const std::uint64_t supported = std::uint64_t{d} << 32 | a;
    for (unsigned i = 2; i <= kLastComponent; ++i) {
      if ((supported >> i & 1) != 0) {
        __cpuid_count(0xd, i, a, b, c, d);
        out[i] = {b, a};
      }
    }
    return out;
  }();
  return table;
}

Extent ordinary_state(std::size_t have) {
  Extent out;
  for (unsigned i = 2; i <= kLastComponent; ++i) {
    const Component& c = components()[i];
    if (c.size != 0 && std::size_t{c.offset} + c.size <= have) {
      out.features |= std::uint64_t{1} << i;
      out.size = std::max<std::size_t>(out.size, std::size_t{c.offset} + c.size);
    }
  }
  return out;
}

}  // namespace

SignalFrame make_signal_frame(std::uint64_t address, Registers r, std::uint64_t mask,
                              std::span<const std::byte> extended_state) {
  const auto result = static_cast<std::int64_t>(r.rax);
  const bool restart = result == -512 || result == -513 || result == -514 || result == -516;
  if (static_cast<std::int64_t>(r.orig_rax) >= 0 && restart) {
    r.rax = r.orig_rax;
    r.rip -= 2;
  }
  const Extent extent = ordinary_state(extended_state.size());
  SignalFrame out;
  const std::size_t context_at = (extent.size + sizeof kMagic2 + kReturnAddress + 15) & ~std::size_t{15};
  out.bytes.resize(context_at + sizeof(UserContext));
  std::memcpy(out.bytes.data(), extended_state.data(), std::min(extent.size, extended_state.size()));
  std::uint64_t in_use = 0;
  std::memcpy(&in_use, out.bytes.data() + kHeaderOffset, sizeof in_use);
  in_use &= extent.features;
  std::memcpy(out.bytes.data() + kHeaderOffset, &in_use, sizeof in_use);
  const SoftwareBytes software{kMagic1,
                               static_cast<std::uint32_t>(extent.size + sizeof kMagic2),
                               extent.features,
                               static_cast<std::uint32_t>(extent.size),
                               {}};
  std::memcpy(out.bytes.data() + kSoftwareOffset, &software, sizeof software);
  std::memcpy(out.bytes.data() + extent.size, &kMagic2, sizeof kMagic2);

  UserContext uc{};
  uc.flags = kHasExtendedState | kHasStackSegment;
  uc.stack_flags = -1;  // refused by sigaltstack(2), which leaves the alternate stack as it is
  SigContext& c = uc.context;
  c.r8 = r.r8;
  c.r9 = r.r9;
  c.r10 = r.r10;
  c.r11 = r.r11;
  c.r12 = r.r12;
  c.r13 = r.r13;
  c.r14 = r.r14;
  c.r15 = r.r15;
  c.di = r.rdi;
  c.si = r.rsi;
  c.bp = r.rbp;
  c.bx = r.rbx;
  c.dx = r.rdx;
  c.ax = r.rax;
  c.cx = r.rcx;
  c.sp = r.rsp;
  c.ip = r.rip;
  c.flags = r.eflags;
  c.cs = static_cast<std::uint16_t>(r.cs);
  c.ss = static_cast<std::uint16_t>(r.ss);
  c.fpstate = address;
  uc.mask = mask;
  std::memcpy(out.bytes.data() + context_at, &uc, sizeof uc);
  out.stack_pointer = address + context_at;
  return out;
}

}  // namespace ferry::tracee

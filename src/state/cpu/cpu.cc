#include "state/cpu/cpu.h"

#include <cpuid.h>
#include <sys/syscall.h>

#include <array>
#include <cstring>

namespace ferry::state::cpu {
namespace {

// Intel SDM 13.1: state components of XSAVE.
enum Component : unsigned {
  kX87 = 0,
  kSse = 1,
  kAvx = 2,
  kBndregs = 3,
  kBndcsr = 4,
  kOpmask = 5,
  kZmmUpper = 6,
  kHi16Zmm = 7,
  kPkru = 9,
  kCetUser = 11,
  kTileConfig = 17,
  kTileData = 18,
};
constexpr int kGetPermission = 0x1022, kAskPermission = 0x1023;  // ARCH_GET_XCOMP_PERM, ARCH_REQ_XCOMP_PERM
constexpr std::size_t kLegacySize = 512;
constexpr std::size_t kHeaderSize = 64;
constexpr std::size_t kMaxArea = 16384;

struct Layout {
  std::uint64_t supported = 0;  // XCR0
  std::array<std::uint32_t, 64> offset{}, size{};
};

// The processor does not change while we run.
const Layout& layout() {
  static const Layout instance = [] {
    Layout l;
    unsigned a = 0;
    unsigned b = 0;
    unsigned c = 0;
    unsigned d = 0;
    if (__get_cpuid_count(0xd, 0, &a, &b, &c, &d) == 0) {
      return l;
    }
    l.supported = std::uint64_t{d} << 32 | a;
    for (unsigned i = 2; i < 63; ++i) {
      if ((l.supported >> i & 1) != 0 && __get_cpuid_count(0xd, i, &a, &b, &c, &d) != 0) {
        l.size[i] = a;
        l.offset[i] = b;
      }
    }
    return l;
  }();
  return instance;
}

// FXSAVE's layout: Intel SDM volume 2, FXSAVE, 64-bit mode without operand-size prefix.
struct Legacy {
  std::uint16_t cwd, swd;
  std::uint8_t twd, reserved;
  std::uint16_t fop;
  std::uint64_t rip, rdp;
  std::uint32_t mxcsr, mxcsr_mask;
  std::uint32_t st[32];
  std::uint32_t xmm[64];
  std::uint32_t padding[24];
};
static_assert(sizeof(Legacy) == kLegacySize);

template <class Word, class Field>
void save_words(std::span<const std::byte> area, unsigned component, std::size_t words, Field& field) {
  const Layout& l = layout();
  if ((l.supported >> component & 1) == 0) {
    return;
  }
  field.Resize(static_cast<int>(words), 0);
  const std::size_t bytes = std::min<std::size_t>(words * sizeof(Word), l.size[component]);
  if (l.offset[component] + bytes <= area.size()) {
    std::memcpy(field.mutable_data(), area.data() + l.offset[component], bytes);
  }
}

template <class Word, class Field>
void load_words(const Field& field, unsigned component, std::vector<std::byte>& area) {
  const Layout& l = layout();
  const std::size_t bytes =
      std::min<std::size_t>(static_cast<std::size_t>(field.size()) * sizeof(Word), l.size[component]);
  if (bytes != 0 && l.offset[component] + bytes <= area.size()) {
    std::memcpy(area.data() + l.offset[component], field.data(), bytes);
  }
}

}  // namespace

void save_registers(const tracee::Registers& r, pb::UserX86RegsEntry& out) {
  out.set_r15(r.r15);
  out.set_r14(r.r14);
  out.set_r13(r.r13);
  out.set_r12(r.r12);
  out.set_bp(r.rbp);
  out.set_bx(r.rbx);
  out.set_r11(r.r11);
  out.set_r10(r.r10);
  out.set_r9(r.r9);
  out.set_r8(r.r8);
  out.set_ax(r.rax);
  out.set_cx(r.rcx);
  out.set_dx(r.rdx);
  out.set_si(r.rsi);
  out.set_di(r.rdi);
  out.set_orig_ax(r.orig_rax);
  out.set_ip(r.rip);
  out.set_cs(r.cs);
  out.set_flags(r.eflags);
  out.set_sp(r.rsp);
  out.set_ss(r.ss);
  out.set_fs_base(r.fs_base);
  out.set_gs_base(r.gs_base);
  out.set_ds(r.ds);
  out.set_es(r.es);
  out.set_fs(r.fs);
  out.set_gs(r.gs);
  out.set_mode(pb::X86_REGS_NATIVE);
}

tracee::Registers load_registers(const pb::UserX86RegsEntry& e) {
  tracee::Registers r{};
  r.r15 = e.r15();
  r.r14 = e.r14();
  r.r13 = e.r13();
  r.r12 = e.r12();
  r.rbp = e.bp();
  r.rbx = e.bx();
  r.r11 = e.r11();
  r.r10 = e.r10();
  r.r9 = e.r9();
  r.r8 = e.r8();
  r.rax = e.ax();
  r.rcx = e.cx();
  r.rdx = e.dx();
  r.rsi = e.si();
  r.rdi = e.di();
  r.orig_rax = e.orig_ax();
  r.rip = e.ip();
  r.cs = e.cs();
  r.eflags = e.flags();
  r.rsp = e.sp();
  r.ss = e.ss();
  r.fs_base = e.fs_base();
  r.gs_base = e.gs_base();
  r.ds = e.ds();
  r.es = e.es();
  r.fs = e.fs();
  r.gs = e.gs();
  return r;
}

Result<void> save_extended(std::span<const std::byte> area, pb::UserX86FpregsEntry& out) {
  if (area.size() < kLegacySize + kHeaderSize) {
    return fail(Kind::unsupported, "the kernel gives an extended state of {} bytes only", area.size());
  }
  Legacy legacy;
  std::memcpy(&legacy, area.data(), sizeof legacy);
  out.set_cwd(legacy.cwd);
  out.set_swd(legacy.swd);
  out.set_twd(legacy.twd);
  out.set_fop(legacy.fop);
  out.set_rip(legacy.rip);
  out.set_rdp(legacy.rdp);
  out.set_mxcsr(legacy.mxcsr);
  out.set_mxcsr_mask(legacy.mxcsr_mask);
  out.mutable_st_space()->Add(std::begin(legacy.st), std::end(legacy.st));
  out.mutable_xmm_space()->Add(std::begin(legacy.xmm), std::end(legacy.xmm));
  std::uint64_t in_use = 0;
  std::memcpy(&in_use, area.data() + kLegacySize, sizeof in_use);
  pb::UserX86XsaveEntry& x = *out.mutable_xsave();
  x.set_xstate_bv(in_use);
  save_words<std::uint32_t>(area, kAvx, 64, *x.mutable_ymmh_space());
  save_words<std::uint64_t>(area, kBndregs, 8, *x.mutable_bndreg_state());
  save_words<std::uint64_t>(area, kBndcsr, 8, *x.mutable_bndcsr_state());
  save_words<std::uint64_t>(area, kOpmask, 8, *x.mutable_opmask_reg());
  save_words<std::uint64_t>(area, kZmmUpper, 64, *x.mutable_zmm_upper());
  save_words<std::uint64_t>(area, kHi16Zmm, 128, *x.mutable_hi16_zmm());
  save_words<std::uint32_t>(area, kPkru, 2, *x.mutable_pkru());
  if ((in_use >> kTileData & 1) != 0) {
    return fail(Kind::unsupported,
                "a thread has data in its AMX tiles, which cannot be carried; checkpoint it between two uses");
  }
  for (const unsigned component : {unsigned{kTileConfig}}) {
    if ((in_use >> component & 1) != 0) {
      const Layout& l = layout();
      if (l.offset[component] + l.size[component] > area.size()) {
        return fail(Kind::unsupported, "the kernel's extended state ends before component {}", component);
      }
      auto& own = *x.add_ferry_components();
      own.set_component(component);
      own.set_content(area.data() + l.offset[component], l.size[component]);
    }
  }
  constexpr std::uint64_t known = 1ULL << kX87 | 1ULL << kSse | 1ULL << kAvx | 1ULL << kBndregs | 1ULL << kBndcsr |
                                  1ULL << kOpmask | 1ULL << kZmmUpper | 1ULL << kHi16Zmm | 1ULL << kPkru |
                                  1ULL << kTileConfig | 1ULL << kTileData;
  if ((in_use & ~known) != 0) {
    return fail(Kind::unsupported, "a thread uses processor state that ferry does not know (XSAVE components {:#x})",
                in_use & ~known);
  }
  return {};
}

Result<std::vector<std::byte>> load_extended(const pb::UserX86FpregsEntry& e) {
  const Layout& l = layout();
  std::size_t end = kLegacySize + kHeaderSize;
  std::uint64_t in_use = e.has_xsave() ? e.xsave().xstate_bv() : (1ULL << kX87 | 1ULL << kSse);
  for (unsigned i = 2; i < 63; ++i) {
    if ((l.supported >> i & 1) != 0) {
      end = std::max<std::size_t>(end, l.offset[i] + l.size[i]);
    }
  }
  if ((in_use & ~l.supported) != 0) {
    return fail(Kind::unsupported, "this processor lacks state that the thread uses (XSAVE components {:#x})",
                in_use & ~l.supported);
  }
  std::vector<std::byte> area(std::min(end, kMaxArea));
  Legacy legacy{};
  legacy.cwd = static_cast<std::uint16_t>(e.cwd());
  legacy.swd = static_cast<std::uint16_t>(e.swd());
  legacy.twd = static_cast<std::uint8_t>(e.twd());
  legacy.fop = static_cast<std::uint16_t>(e.fop());
  legacy.rip = e.rip();
  legacy.rdp = e.rdp();
  legacy.mxcsr = e.mxcsr();
  legacy.mxcsr_mask = e.mxcsr_mask();
  if (e.st_space_size() > 32 || e.xmm_space_size() > 64) {
    return fail(Kind::corrupt, "fpregs with {} st and {} xmm words", e.st_space_size(), e.xmm_space_size());
  }
  std::copy(e.st_space().begin(), e.st_space().end(), std::begin(legacy.st));
  std::copy(e.xmm_space().begin(), e.xmm_space().end(), std::begin(legacy.xmm));
  std::memcpy(area.data(), &legacy, sizeof legacy);
  if (e.has_xsave()) {
    const pb::UserX86XsaveEntry& x = e.xsave();
    load_words<std::uint32_t>(x.ymmh_space(), kAvx, area);
    load_words<std::uint64_t>(x.bndreg_state(), kBndregs, area);
    load_words<std::uint64_t>(x.bndcsr_state(), kBndcsr, area);
    load_words<std::uint64_t>(x.opmask_reg(), kOpmask, area);
    load_words<std::uint64_t>(x.zmm_upper(), kZmmUpper, area);
    load_words<std::uint64_t>(x.hi16_zmm(), kHi16Zmm, area);
    load_words<std::uint32_t>(x.pkru(), kPkru, area);
    for (const auto& own : x.ferry_components()) {
      const unsigned component = own.component();
      if (own.content().empty()) {
        continue;  // a permission
      }
      if (component >= 63 || own.content().size() != l.size[component] ||
          l.offset[component] + l.size[component] > area.size()) {
        return fail(Kind::corrupt, "processor state component {} of {} bytes", component, own.content().size());
      }
      std::memcpy(area.data() + l.offset[component], own.content().data(), own.content().size());
    }
  }
  std::memcpy(area.data() + kLegacySize, &in_use, sizeof in_use);
  return area;
}

Answers ask(DumpTask& task, tracee::Batch& batch) {
  const tracee::Data room = batch.room(sizeof(std::uint64_t));
  const tracee::Value got = batch.may(SYS_arch_prctl, {kGetPermission, room});
  return [&task, room, got](const tracee::Replies& replies) -> Result<void> {
    if (replies[got] == 0 && (replies.object<std::uint64_t>(room) >> kTileData & 1) != 0) {
      auto& own = *task.core->mutable_thread_info()->mutable_fpregs()->mutable_xsave()->add_ferry_components();
      own.set_component(kTileData);
      own.set_content("");
    }
    return {};
  };
}

Result<void> restore(RestoreTask& task, tracee::Batch& batch) {
  for (const auto& own : task.core->thread_info().fpregs().xsave().ferry_components()) {
    if (own.component() == kTileData && own.content().empty()) {
      batch.must("arch_prctl(ARCH_REQ_XCOMP_PERM): this processor has no AMX", SYS_arch_prctl,
                 {kAskPermission, kTileData});
    }
  }
  return {};
}

}  // namespace ferry::state::cpu

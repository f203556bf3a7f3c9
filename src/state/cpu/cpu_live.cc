// What is in the registers is compared without a compiler in between.
#include <cpuid.h>
#include <fenv.h>
#include <immintrin.h>

#include <array>
#include <cstdint>

#include "live/gate.h"
#include "live/live.h"

namespace ferry::live {
namespace {

// The registers are loaded, the checkpoint passes, and they are stored, in one piece of assembler.
#define FERRY_SPIN              \
  "lock incl (%[arrived])\n\t"  \
  "1: pause\n\t"                \
  "movl (%[passed]), %%eax\n\t" \
  "cmpl %[mine], %%eax\n\t"     \
  "jb 1b\n\t"

LIVE_TEST(Cpu, KeepsVectorRegisters) {
  if (!__builtin_cpu_supports("avx")) {
    GTEST_SKIP() << "this processor has no AVX";
  }
  alignas(32) std::array<std::uint64_t, 64> in{}, out{};
  for (std::size_t i = 0; i < in.size(); ++i) {
    in[i] = 0x0101010101010101ULL * (i + 1);
  }
  Gate& g = gate();
  asm volatile(
      "vmovdqa 0(%[in]), %%ymm0\n\t vmovdqa 32(%[in]), %%ymm1\n\t vmovdqa 64(%[in]), %%ymm2\n\t"
      "vmovdqa 96(%[in]), %%ymm3\n\t vmovdqa 128(%[in]), %%ymm4\n\t vmovdqa 160(%[in]), %%ymm5\n\t"
      "vmovdqa 192(%[in]), %%ymm6\n\t vmovdqa 224(%[in]), %%ymm7\n\t vmovdqa 256(%[in]), %%ymm8\n\t"
      "vmovdqa 288(%[in]), %%ymm9\n\t vmovdqa 320(%[in]), %%ymm10\n\t vmovdqa 352(%[in]), %%ymm11\n\t"
      "vmovdqa 384(%[in]), %%ymm12\n\t vmovdqa 416(%[in]), %%ymm13\n\t vmovdqa 448(%[in]), %%ymm14\n\t"
      "vmovdqa 480(%[in]), %%ymm15\n\t" FERRY_SPIN
      "vmovdqa %%ymm0, 0(%[out])\n\t vmovdqa %%ymm1, 32(%[out])\n\t vmovdqa %%ymm2, 64(%[out])\n\t"
      "vmovdqa %%ymm3, 96(%[out])\n\t vmovdqa %%ymm4, 128(%[out])\n\t vmovdqa %%ymm5, 160(%[out])\n\t"
      "vmovdqa %%ymm6, 192(%[out])\n\t vmovdqa %%ymm7, 224(%[out])\n\t vmovdqa %%ymm8, 256(%[out])\n\t"
      "vmovdqa %%ymm9, 288(%[out])\n\t vmovdqa %%ymm10, 320(%[out])\n\t vmovdqa %%ymm11, 352(%[out])\n\t"
      "vmovdqa %%ymm12, 384(%[out])\n\t vmovdqa %%ymm13, 416(%[out])\n\t vmovdqa %%ymm14, 448(%[out])\n\t"
      "vmovdqa %%ymm15, 480(%[out])\n\t vzeroupper\n\t"
      :
      : [in] "r"(in.data()), [out] "r"(out.data()), [arrived] "r"(&g.arrived), [passed] "r"(&g.passed),
        [mine] "r"(g.arrived + 1)
      : "memory", "eax", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
        "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
  EXPECT_EQ(in, out);
}

__attribute__((target("avx512f"))) void across_masks(Gate& g, const std::uint64_t* in, std::uint64_t* out) {
  asm volatile(
      "kmovw (%[in]), %%k1\n\t kmovw 2(%[in]), %%k7\n\t"
      "vmovdqu64 64(%[in]), %%zmm3\n\t vmovdqu64 128(%[in]), %%zmm31\n\t" FERRY_SPIN
      "kmovw %%k1, (%[out])\n\t kmovw %%k7, 2(%[out])\n\t"
      "vmovdqu64 %%zmm3, 64(%[out])\n\t vmovdqu64 %%zmm31, 128(%[out])\n\t vzeroupper\n\t"
      :
      : [in] "r"(in), [out] "r"(out), [arrived] "r"(&g.arrived), [passed] "r"(&g.passed), [mine] "r"(g.arrived + 1)
      : "memory", "eax", "cc", "xmm3");
}

LIVE_TEST(Cpu, KeepsMasksAndWideRegisters) {
  if (!__builtin_cpu_supports("avx512f")) {
    GTEST_SKIP() << "this processor has no AVX-512";
  }
  std::array<std::uint64_t, 24> in{}, out{};
  in[0] = 0xa5c31234;
  for (std::size_t i = 8; i < in.size(); ++i) {
    in[i] = 0x1111111111111111ULL * (i % 15 + 1);
  }
  across_masks(gate(), in.data(), out.data());
  EXPECT_EQ(in, out);
}

LIVE_TEST(Cpu, KeepsTheFloatingPointUnit) {
  ASSERT_EQ(::fesetround(FE_UPWARD), 0);
  const unsigned control = _mm_getcsr();
  long double pi = 0, after = 0;
  Gate& g = gate();
  // Two values stay on the old unit's stack meanwhile.
  asm volatile("fldpi\n\t fld1\n\t" FERRY_SPIN "fstpt %[one]\n\t fstpt %[pi]\n\t"
               : [one] "=m"(after), [pi] "=m"(pi)
               : [arrived] "r"(&g.arrived), [passed] "r"(&g.passed), [mine] "r"(g.arrived + 1)
               : "memory", "eax", "cc", "st", "st(1)");
  EXPECT_EQ(after, 1.0L);
  EXPECT_NEAR(static_cast<double>(pi), 3.14159265358979, 1e-12);
  EXPECT_EQ(::fegetround(), FE_UPWARD);
  EXPECT_EQ(_mm_getcsr() & ~0x3fU, control & ~0x3fU);
}

LIVE_TEST(Cpu, KeepsGeneralRegistersAndFlags) {
  std::uint64_t wrong = 1;
  Gate& g = gate();
  asm volatile(
      "movq $0x1111, %%r8\n\t movq $0x2222, %%r9\n\t movq $0x3333, %%r10\n\t movq $0x4444, %%r12\n\t"
      "movq $-5, %%r13\n\t movq $0x6666, %%r14\n\t movq $0x7777, %%r15\n\t std\n\t" FERRY_SPIN
      "pushfq\n\t popq %%rax\n\t cld\n\t"
      "xorl %k[wrong], %k[wrong]\n\t"
      "testq $0x400, %%rax\n\t jz 2f\n\t"
      "cmpq $0x1111, %%r8\n\t jne 2f\n\t cmpq $0x2222, %%r9\n\t jne 2f\n\t cmpq $0x3333, %%r10\n\t jne 2f\n\t"
      "cmpq $0x4444, %%r12\n\t jne 2f\n\t cmpq $-5, %%r13\n\t jne 2f\n\t cmpq $0x6666, %%r14\n\t jne 2f\n\t"
      "cmpq $0x7777, %%r15\n\t je 3f\n\t"
      "2: movl $1, %k[wrong]\n\t"
      "3:\n\t"
      : [wrong] "+&r"(wrong)
      : [arrived] "r"(&g.arrived), [passed] "r"(&g.passed), [mine] "r"(g.arrived + 1)
      : "memory", "rax", "cc", "r8", "r9", "r10", "r12", "r13", "r14", "r15");
  EXPECT_EQ(wrong, 0U);
}

}  // namespace
}  // namespace ferry::live

#include "sys/kernel_memory.h"

#include <linux/bpf.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <vector>

#include "sys/bpf_program.h"

namespace ferry::sys {
namespace {

// What the program is given, and gives back.
struct Exchange {
  std::uint64_t address;  // 0: the address of the calling task is asked for
  std::uint64_t size;
  std::array<std::byte, 256> data;  // what fits on a program's stack, by which it has to go
};
static_assert(sizeof(Exchange) == 16 + 256);

Result<std::int32_t> run(int program, Exchange& exchange) {
  bpf_attr attributes{};
  attributes.test.prog_fd = static_cast<std::uint32_t>(program);
  attributes.test.ctx_in = reinterpret_cast<std::uint64_t>(&exchange);
  attributes.test.ctx_size_in = sizeof exchange;
  if (bpf(BPF_PROG_RUN, attributes) != 0) {
    return sys_fail("bpf(BPF_PROG_RUN)");
  }
  return static_cast<std::int32_t>(attributes.test.retval);
}

}  // namespace

Result<KernelMemory> KernelMemory::open() {
  constexpr auto kData = static_cast<std::int16_t>(offsetof(Exchange, data));
  constexpr auto kSize = static_cast<std::int16_t>(sizeof(Exchange::data));
  constexpr std::uint8_t kExchange = BPF_REG_6;
  std::vector<bpf_insn> code{
      instruction(BPF_ALU64 | BPF_MOV | BPF_X, kExchange, BPF_REG_1, 0, 0),
      instruction(BPF_LDX | BPF_MEM | BPF_DW, BPF_REG_3, kExchange, offsetof(Exchange, address), 0),
      instruction(BPF_LDX | BPF_MEM | BPF_DW, BPF_REG_2, kExchange, offsetof(Exchange, size), 0),
      instruction(BPF_JMP | BPF_JNE | BPF_K, BPF_REG_3, 0, 4, 0),
      instruction(BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_get_current_task),
      instruction(BPF_STX | BPF_MEM | BPF_DW, kExchange, BPF_REG_0, kData, 0),
      instruction(BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_0, 0, 0, 0),
      instruction(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
      // The verifier has to see that it fits, and that nothing of the stack is told that was not written.
      instruction(BPF_JMP | BPF_JLE | BPF_K, BPF_REG_2, 0, 2, kSize),
      instruction(BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_0, 0, 0, -E2BIG),
      instruction(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
  };
  for (std::int16_t i = 0; i < kSize; i += 8) {
    code.push_back(instruction(BPF_ST | BPF_MEM | BPF_DW, BPF_REG_10, 0, static_cast<std::int16_t>(i - kSize), 0));
  }
  code.push_back(instruction(BPF_ALU64 | BPF_MOV | BPF_X, BPF_REG_1, BPF_REG_10, 0, 0));
  code.push_back(instruction(BPF_ALU64 | BPF_ADD | BPF_K, BPF_REG_1, 0, 0, -kSize));
  code.push_back(instruction(BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_probe_read_kernel));
  for (std::int16_t i = 0; i < kSize; i += 8) {
    const auto from = static_cast<std::int16_t>(i - kSize), to = static_cast<std::int16_t>(i + kData);
    code.push_back(instruction(BPF_LDX | BPF_MEM | BPF_DW, BPF_REG_1, BPF_REG_10, from, 0));
    code.push_back(instruction(BPF_STX | BPF_MEM | BPF_DW, kExchange, BPF_REG_1, to, 0));
  }
  code.push_back(instruction(BPF_JMP | BPF_EXIT, 0, 0, 0, 0));
  bpf_attr attributes{};
  attributes.prog_type = BPF_PROG_TYPE_SYSCALL;
  attributes.prog_flags = BPF_F_SLEEPABLE;
  KernelMemory out;
  FERRY_TRY(out.program_, load_program(code, attributes));
  return out;
}

Result<std::uint64_t> KernelMemory::current_task() const {
  Exchange exchange{};
  FERRY_TRY(const std::int32_t error, run(program_.get(), exchange));
  std::uint64_t task = 0;
  std::memcpy(&task, exchange.data.data(), sizeof task);
  if (error != 0 || task == 0) {
    return sys_fail(-error, "asking the kernel for the address of this task");
  }
  return task;
}

Result<void> KernelMemory::read(std::uint64_t address, std::span<std::byte> out) const {
  if (out.empty()) {
    return {};
  }
  if (address == 0 || address + out.size() < address) {
    return sys_fail(EFAULT, fmt::format("reading the kernel's memory at {:#x}", address));
  }
  Exchange exchange{};
  for (std::size_t done = 0; done < out.size();) {
    exchange.address = address + done;
    exchange.size = std::min(out.size() - done, exchange.data.size());
    FERRY_TRY(const std::int32_t error, run(program_.get(), exchange));
    if (error != 0) {
      return sys_fail(-error, fmt::format("reading the kernel's memory at {:#x}", address));
    }
    std::memcpy(out.data() + done, exchange.data.data(), static_cast<std::size_t>(exchange.size));
    done += static_cast<std::size_t>(exchange.size);
  }
  return {};
}

}  // namespace ferry::sys

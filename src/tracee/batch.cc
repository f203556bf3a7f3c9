#include "tracee/batch.h"

#include <sys/syscall.h>

#include <algorithm>

namespace ferry::tracee {

Value Batch::append(const char* what, std::uint32_t flags, long number, std::initializer_list<Argument> arguments) {
  // A result is moved into its argument by a copy record that stands just before the call.
  std::uint32_t copies = 0;
  for (const Argument& a : arguments) {
    copies += a.kind_ == Argument::Kind::result ? 1 : 0;
  }
  const auto index = static_cast<std::uint32_t>(records_.size()) + copies;
  Record record{static_cast<std::uint32_t>(number), flags, 0, {}};
  std::uint32_t i = 0;
  for (const Argument& a : arguments) {
    switch (a.kind_) {
      case Argument::Kind::number:
        record.argument[i] = a.value_;
        break;
      case Argument::Kind::data:
        fixups_.push_back({Fixup::What::argument, index, i, a.value_, 0});
        break;
      case Argument::Kind::result: {
        const auto copy = static_cast<std::uint32_t>(records_.size());
        records_.push_back({kCopy, 0, 0, {}});
        names_.push_back("copy");
        fixups_.push_back({Fixup::What::copy_from, copy, 0, a.value_, 0});
        fixups_.push_back({Fixup::What::copy_to, copy, 1, index, i});
        break;
      }
    }
    ++i;
  }
  records_.push_back(record);
  names_.push_back(what);
  return Value{index};
}

Value Batch::must(const char* what, long number, std::initializer_list<Argument> arguments) {
  return append(what, kMust, number, arguments);
}

Value Batch::may(long number, std::initializer_list<Argument> arguments) { return append("", 0, number, arguments); }

Data Batch::bytes(std::span<const std::byte> from) {
  const Data data = room(from.size());
  if (!from.empty()) {
    std::memcpy(data_.data() + data.offset, from.data(), from.size());
  }
  return data;
}

Data Batch::string(std::string_view text) {
  const Data data = room(text.size() + 1);
  std::ranges::copy(std::as_bytes(std::span(text)), data_.begin() + static_cast<std::ptrdiff_t>(data.offset));
  return data;
}

Data Batch::room(std::size_t size) {
  const std::size_t offset = (data_.size() + 15) & ~std::size_t{15};
  data_.resize(offset + size);
  return {static_cast<std::uint32_t>(offset), static_cast<std::uint32_t>(size)};
}

void Batch::point(Data into, std::size_t offset, Data data) {
  fixups_.push_back({Fixup::What::data, 0, into.offset + static_cast<std::uint32_t>(offset), data.offset, 0});
}

void Batch::store(Value value, Data into, std::size_t offset) {
  const auto copy = static_cast<std::uint32_t>(records_.size());
  records_.push_back({kCopy, 0, 0, {}});
  names_.push_back("copy");
  fixups_.push_back({Fixup::What::copy_from, copy, 0, value.record, 0});
  fixups_.push_back({Fixup::What::copy_to, copy, 1, into.offset + offset, kDataTarget});
}

std::size_t Batch::size() const {
  return (records_.size() + kEndRecords) * sizeof(Record) + ((data_.size() + 63) & ~std::size_t{63});
}

std::vector<std::byte> Batch::place(std::uint64_t base, int end_signal, std::uint64_t frame) const {
  const std::uint64_t data_base = base + (records_.size() + kEndRecords) * sizeof(Record);
  std::vector<Record> records = records_;
  std::vector<std::byte> data = data_;
  const auto record_address = [&](std::uint64_t record) { return base + record * sizeof(Record); };
  for (const Fixup& f : fixups_) {
    switch (f.what) {
      case Fixup::What::argument:
        records[f.record].argument[f.index] = data_base + f.target;
        break;
      case Fixup::What::copy_from:
        records[f.record].argument[f.index] = record_address(f.target) + offsetof(Record, result);
        break;
      case Fixup::What::copy_to:
        records[f.record].argument[f.index] =
            f.extra == kDataTarget
                ? data_base + f.target
                : record_address(f.target) + offsetof(Record, argument) + f.extra * sizeof(std::uint64_t);
        break;
      case Fixup::What::data: {
        const std::uint64_t address = data_base + f.target;
        std::memcpy(data.data() + f.index, &address, sizeof address);
        break;
      }
    }
  }
  const std::uint64_t end = records.size();
  const auto result_of = [&](std::uint64_t i) { return record_address(end + i) + offsetof(Record, result); };
  const auto argument_of = [&](std::uint64_t i, std::uint64_t n) {
    return record_address(end + i) + offsetof(Record, argument) + n * sizeof(std::uint64_t);
  };
  records.push_back({SYS_getpid, 0, 0, {}});
  records.push_back({SYS_gettid, 0, 0, {}});
  records.push_back({kCopy, 0, 0, {result_of(0), argument_of(kSignalRecord, 0)}});
  records.push_back({kCopy, 0, 0, {result_of(1), argument_of(kSignalRecord, 1)}});
  records.push_back({SYS_tgkill, 0, 0, {0, 0, static_cast<std::uint64_t>(end_signal)}});
  records.push_back({kReturn, 0, 0, {frame}});
  std::vector<std::byte> out(records.size() * sizeof(Record) + data.size());
  std::memcpy(out.data(), records.data(), records.size() * sizeof(Record));
  if (!data.empty()) {
    std::memcpy(out.data() + records.size() * sizeof(Record), data.data(), data.size());
  }
  return out;
}

// Registers: rbx walks the records; rsp is touched only for rt_sigreturn, so the target's stack stays as it
// was.
// The system call clobbers rcx and r11 only.
asm(R"(
  .pushsection .rodata
  .globl ferry_loop_begin
  .globl ferry_loop_end
ferry_loop_begin:
1:  movl (%rbx), %eax
    cmpl $-1, %eax
    je 4f
    cmpl $-2, %eax
    je 3f
    movq 16(%rbx), %rdi
    movq 24(%rbx), %rsi
    movq 32(%rbx), %rdx
    movq 40(%rbx), %r10
    movq 48(%rbx), %r8
    movq 56(%rbx), %r9
    syscall
    movq %rax, 8(%rbx)
    testl $1, 4(%rbx)
    jz 2f
    cmpq $-4095, %rax
    jb 2f
    movq %rbx, %r15
    movq %r14, %rbx
    jmp 1b
2:  addq $64, %rbx
    jmp 1b
3:  movq 16(%rbx), %rdi
    movq 24(%rbx), %rsi
    movq (%rdi), %rax
    movq %rax, (%rsi)
    jmp 2b
4:  movq 16(%rbx), %rsp
    movl $15, %eax
    syscall
ferry_loop_end:
  .popsection
)");
extern "C" const std::byte ferry_loop_begin[];
extern "C" const std::byte ferry_loop_end[];

std::span<const std::byte> loop_code() {
  return {ferry_loop_begin, static_cast<std::size_t>(ferry_loop_end - ferry_loop_begin)};
}

}  // namespace ferry::tracee

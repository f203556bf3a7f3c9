#include "sys/bpf_iterator.h"

#include <linux/bpf.h>
#include <unistd.h>

#include <cerrno>
#include <string_view>

#include "sys/bpf_program.h"

namespace ferry::sys {
namespace {

constexpr std::uint8_t kFile = 6;        // the register that holds where to write to
constexpr std::size_t kStackSize = 512;  // of a program
constexpr std::size_t kReadSize = 256 << 10;
// Of a hundred thousand threads it would be less.
constexpr std::size_t kMostEmitted = 64 << 20;

}  // namespace

IteratorProgram::IteratorProgram() = default;
IteratorProgram::IteratorProgram(IteratorProgram&&) noexcept = default;
IteratorProgram::~IteratorProgram() = default;

void IteratorProgram::put(std::uint8_t code, std::uint8_t to, std::uint8_t from, std::int16_t offset,
                          std::int32_t value) {
  code_.push_back(instruction(code, to, from, offset, value));
}

void IteratorProgram::put_move(std::uint8_t to, std::uint8_t from) { put(BPF_ALU64 | BPF_MOV | BPF_X, to, from, 0, 0); }

std::int16_t IteratorProgram::slot(std::size_t word) const {
  return static_cast<std::int16_t>(static_cast<int>(word * 8) - static_cast<int>(words_ * 8));
}

Result<IteratorProgram> IteratorProgram::begin(const Btf& btf, int object, std::size_t words, std::size_t own) {
  FERRY_TRY(const std::uint32_t meta, btf.structure("bpf_iter_meta"));
  FERRY_TRY(const Btf::Field file, btf.field(meta, "seq"));
  if ((words + own) * 8 > kStackSize) {
    return fail(Kind::invalid, "{} words are more than a program can hold", words + own);
  }
  IteratorProgram out;
  out.words_ = words + own;
  out.emitted_ = words;
  // The context: a pointer to the iterator's own state, and then one to each object of this round.
  out.put(BPF_LDX | BPF_MEM | BPF_DW, kFile, BPF_REG_1, 0, 0);
  out.put(BPF_LDX | BPF_MEM | BPF_DW, kObject, BPF_REG_1, static_cast<std::int16_t>(object * 8), 0);
  out.put(BPF_JMP | BPF_JNE | BPF_K, kObject, 0, 2, 0);
  out.put(BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_0, 0, 0, 0);  // no object: the end
  out.put(BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
  out.put(BPF_LDX | BPF_MEM | BPF_DW, kFile, kFile, static_cast<std::int16_t>(file.offset), 0);
  for (std::size_t i = 0; i < out.words_; ++i) {
    out.put(BPF_ST | BPF_MEM | BPF_DW, BPF_REG_10, 0, out.slot(i), 0);
  }
  return out;
}

void IteratorProgram::copy(std::size_t to_word, std::uint8_t base, std::uint32_t offset, std::uint32_t size) {
  put_move(BPF_REG_1, BPF_REG_10);
  put(BPF_ALU64 | BPF_ADD | BPF_K, BPF_REG_1, 0, 0, slot(to_word));
  put(BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_2, 0, 0, static_cast<std::int32_t>(size));
  put_move(BPF_REG_3, base);
  put(BPF_ALU64 | BPF_ADD | BPF_K, BPF_REG_3, 0, 0, static_cast<std::int32_t>(offset));
  put(BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_probe_read_kernel);
}

void IteratorProgram::store(std::size_t to_word, std::uint8_t from) {
  put(BPF_STX | BPF_MEM | BPF_DW, BPF_REG_10, from, slot(to_word), 0);
}

void IteratorProgram::load(std::uint8_t to, std::size_t word) {
  put(BPF_LDX | BPF_MEM | BPF_DW, to, BPF_REG_10, slot(word), 0);
}

void IteratorProgram::multiply(std::uint8_t reg, std::int32_t factor) {
  put(BPF_ALU64 | BPF_MUL | BPF_K, reg, 0, 0, factor);
}

void IteratorProgram::add(std::uint8_t reg, std::uint8_t other) { put(BPF_ALU64 | BPF_ADD | BPF_X, reg, other, 0, 0); }

Result<UniqueFd> IteratorProgram::finish(const Btf& btf, const char* iterator) {
  FERRY_TRY(const std::uint32_t function, btf.function(iterator));
  put_move(BPF_REG_1, kFile);
  put_move(BPF_REG_2, BPF_REG_10);
  put(BPF_ALU64 | BPF_ADD | BPF_K, BPF_REG_2, 0, 0, slot(0));
  put(BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_3, 0, 0, static_cast<std::int32_t>(emitted_ * 8));
  put(BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_seq_write);
  put(BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_0, 0, 0, 0);
  put(BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
  bpf_attr attr{};
  attr.prog_type = BPF_PROG_TYPE_TRACING;
  attr.expected_attach_type = BPF_TRACE_ITER;
  attr.attach_btf_id = function;
  return load_program(code_, attr);
}

Result<Iteration> Iteration::prepare(int program, Of of, HostPid pid) {
  bpf_iter_link_info info{};
  if (of != Of::everything) {
    // Mappings and files are those of the process, and would come again with each of its threads.
    (of == Of::threads ? info.task.pid : info.task.tid) = static_cast<std::uint32_t>(pid.value);
  }
  bpf_attr attr{};
  attr.link_create.prog_fd = static_cast<std::uint32_t>(program);
  attr.link_create.attach_type = BPF_TRACE_ITER;
  attr.link_create.iter_info = reinterpret_cast<std::uint64_t>(&info);
  attr.link_create.iter_info_len = sizeof info;
  Iteration out;
  out.pid_ = pid;
  const long link = bpf(BPF_LINK_CREATE, attr);
  if (link < 0) {
    return sys_fail(fmt::format("bpf(BPF_LINK_CREATE, pid {})", pid));
  }
  out.link_ = UniqueFd(static_cast<int>(link));
  bpf_attr create{};
  create.iter_create.link_fd = static_cast<std::uint32_t>(link);
  const long iterator = bpf(BPF_ITER_CREATE, create);
  if (iterator < 0) {
    return sys_fail(fmt::format("bpf(BPF_ITER_CREATE, pid {})", pid));
  }
  out.file_ = UniqueFd(static_cast<int>(iterator));
  return out;
}

Result<std::string> Iteration::next() {
  std::string out(kReadSize, '\0');
  for (;;) {
    const ssize_t n = ::read(file_.get(), out.data(), out.size());
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) {
      continue;
    }
    if (n < 0) {
      return sys_fail(fmt::format("reading an iterator over pid {}", pid_));
    }
    out.resize(static_cast<std::size_t>(n));
    return out;
  }
}

namespace {

Result<std::string> read_all(Iteration iteration, std::string_view what) {
  std::string out;
  while (out.size() < kMostEmitted) {
    FERRY_TRY(const std::string part, iteration.next());
    if (part.empty()) {
      return out;
    }
    out += part;
  }
  return fail(Kind::os, "an iterator over {} does not end", what);
}

}  // namespace

Result<std::string> iterate_threads(int program, HostPid pid) {
  FERRY_TRY(Iteration iteration, Iteration::prepare(program, Iteration::Of::threads, pid));
  return read_all(std::move(iteration), "a process");
}

Result<std::string> iterate_all_threads(int program) {
  FERRY_TRY(Iteration iteration, Iteration::prepare(program, Iteration::Of::everything, HostPid()));
  return read_all(std::move(iteration), "all processes");
}

}  // namespace ferry::sys

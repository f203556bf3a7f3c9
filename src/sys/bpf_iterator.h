// Programs of BPF that walk over objects of the kernel and emit words of each: written by hand, because they are a
// list of copies, and for the running kernel, whose fields are where its type information says.
// Source: Documentation/bpf/bpf_iterators.rst, bpf(2).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/ids.h"
#include "base/unique_fd.h"
#include "sys/btf.h"

struct bpf_insn;

namespace ferry::sys {

class IteratorProgram {
 public:
  // Register that holds the object of this round; those above it up to 9 are the caller's.
  static constexpr std::uint8_t kObject = 7, kSpare = 8, kOther = 9;

  // `object`: which field of its context holds the object; `words`: how many are emitted, of eight bytes each;
  // `own`: how many more the program needs for itself.
  static Result<IteratorProgram> begin(const Btf& btf, int object, std::size_t words, std::size_t own);
  IteratorProgram(IteratorProgram&&) noexcept;
  ~IteratorProgram();

  // Copies `size` bytes of the kernel at register `base` + `offset` to a word.
  void copy(std::size_t to_word, std::uint8_t base, std::uint32_t offset, std::uint32_t size);
  void store(std::size_t to_word, std::uint8_t from);
  void load(std::uint8_t to, std::size_t word);
  void multiply(std::uint8_t reg, std::int32_t factor);
  void add(std::uint8_t reg, std::uint8_t other);

  // Emits the words and loads the program.  `iterator`: a function of the kernel, "bpf_iter_task".
  // Errors: unsupported or denied, where this kernel does not do that or not for us.
  Result<UniqueFd> finish(const Btf& btf, const char* iterator);

 private:
  IteratorProgram();
  void put(std::uint8_t code, std::uint8_t to, std::uint8_t from, std::int16_t offset, std::int32_t value);
  void put_move(std::uint8_t to, std::uint8_t from);
  [[nodiscard]] std::int16_t slot(std::size_t word) const;

  std::vector<bpf_insn> code_;
  std::size_t words_ = 0, emitted_ = 0;
};

// A walk that was asked for and begins at the first read.
class Iteration {
 public:
  // `everything`: the threads of all processes, and then the process is not looked at.
  enum class Of : std::uint8_t { threads, mappings, files, everything };
  // `program`: made for that.  Nothing is looked at yet.  Errors: gone (there is no such process), os.
  static Result<Iteration> prepare(int program, Of of, HostPid pid);
  // What comes next; empty at the end.  Everything that belongs to one object comes at once.
  Result<std::string> next();

 private:
  HostPid pid_;
  UniqueFd link_, file_;
};

// Everything that a program emits of the threads of a process, or of all that there are.
Result<std::string> iterate_threads(int program, HostPid pid);
Result<std::string> iterate_all_threads(int program);

}  // namespace ferry::sys

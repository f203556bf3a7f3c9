// A list of system calls that another process is to make, and the bytes they refer to.
//
// A batch is plain data until Process::run sends it: one injected loop walks the records, so the
// whole list costs one stop (docs/architecture.md, "Remote batches").  An argument can be a number,
// the address of bytes that travel with the batch, or the result of an earlier record.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

#include "base/error.h"

namespace ferry::tracee {

// The wire form of one call: what the loop in loop.cc reads.  One cache line.
struct Record {
  std::uint32_t number;  // of the system call, or kReturn, or kCopy
  std::uint32_t flags;   // kMust
  std::int64_t result;
  std::uint64_t argument[6];
};
static_assert(sizeof(Record) == 64);

// Bytes that travel with a batch: an offset into its data, valid for this batch only.
struct Data {
  std::uint32_t offset = 0;
  std::uint32_t size = 0;
};
// The result of a record of this batch.
struct Value {
  std::uint32_t record = 0;
};

class Argument {
 public:
  template <class T, std::enable_if_t<std::is_integral_v<T> || std::is_enum_v<T>, int> = 0>
  Argument(T number)  // sign-extended, as the C library would
      : kind_(Kind::number), value_(static_cast<std::uint64_t>(static_cast<std::int64_t>(number))) {}
  Argument(Data data) : kind_(Kind::data), value_(data.offset) {}
  Argument(Value value) : kind_(Kind::result), value_(value.record) {}

 private:
  friend class Batch;
  enum class Kind : std::uint8_t { number, data, result };
  Kind kind_;
  std::uint64_t value_;
};

class Batch {
 public:
  static constexpr std::uint32_t kReturn = 0xffffffff;  // argument[0]: stack pointer for rt_sigreturn
  static constexpr std::uint32_t kCopy = 0xfffffffe;    // argument[0]: from, argument[1]: to; 8 bytes
  static constexpr std::uint32_t kMust = 1;             // a failure of this record ends the batch

  // Appends a call that has to succeed; `what` names it in the error.  A literal: kept by pointer.
  Value must(const char* what, long number, std::initializer_list<Argument> arguments);
  // Appends a call whose failure is an answer.
  Value may(long number, std::initializer_list<Argument> arguments);

  // Copies bytes into the batch, aligned to 16.
  Data bytes(std::span<const std::byte> from);
  template <class T>
  Data object(const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    return bytes(std::as_bytes(std::span(&value, 1)));
  }
  // With its terminating NUL.
  Data string(std::string_view text);
  // Zeroed room for an answer.
  Data room(std::size_t size);

  // Writes the address that `data` will have into the data of this batch, at `offset` within `into`:
  // for structures that hold pointers.
  void point(Data into, std::size_t offset, Data data);
  // The same for an earlier record's result (8 bytes), just before the next call is made.
  void store(Value value, Data into, std::size_t offset);

  [[nodiscard]] bool empty() const { return records_.empty(); }
  [[nodiscard]] std::size_t calls() const { return records_.size(); }
  // Room it takes in the target, in bytes.
  [[nodiscard]] std::size_t size() const;

 private:
  friend class Process;
  friend class Replies;
  struct Fixup {
    enum class What : std::uint8_t { argument, copy_from, copy_to, data } what;
    std::uint32_t record;  // data: unused
    std::uint32_t index;   // argument number; data: offset of the pointer in data_
    std::uint64_t target;  // offset in data_, or record number for copy_from/copy_to
    std::uint32_t extra;   // copy_to: argument number within the record, or kDataTarget
  };
  static constexpr std::uint32_t kDataTarget = 0xffffffff;

  Value append(const char* what, std::uint32_t flags, long number, std::initializer_list<Argument> arguments);
  // The records behind a batch's own: the thread sends itself `end_signal`, which a tracer sees; without
  // one it is ignored, and the thread goes back to what it was by rt_sigreturn with `frame`.
  static constexpr std::size_t kEndRecords = 6;
  static constexpr std::size_t kSignalRecord = 4;  // of them, the one that sends it
  // The bytes as they have to stand at address `base` of the target: records, end records, data.
  [[nodiscard]] std::vector<std::byte> place(std::uint64_t base, int end_signal, std::uint64_t frame) const;

  std::vector<Record> records_;
  std::vector<const char*> names_;
  std::vector<std::byte> data_;
  std::vector<Fixup> fixups_;
};

// What a batch answered.
class Replies {
 public:
  // Raw result: a negative errno on failure.
  [[nodiscard]] std::int64_t operator[](Value value) const { return records_[value.record].result; }
  [[nodiscard]] std::span<const std::byte> bytes(Data data) const {
    return std::span(data_).subspan(data.offset, data.size);
  }
  template <class T>
  [[nodiscard]] T object(Data data) const {
    static_assert(std::is_trivially_copyable_v<T>);
    T value;
    std::memcpy(&value, data_.data() + data.offset, sizeof value);
    return value;
  }

 private:
  friend class Process;
  std::vector<Record> records_;
  std::vector<std::byte> data_;
};

// The loop itself, position-independent.  rbx: the first record; r14: the records that end a batch, which
// are also taken when a `must` record fails; r15: 0, and then the address of the record that failed.
std::span<const std::byte> loop_code();

}  // namespace ferry::tracee

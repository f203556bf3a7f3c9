// Where the pages that are missing come from: files, or a connection.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "base/error.h"
#include "base/ids.h"

namespace ferry::lazy {

class PageSource {
 public:
  struct Range {
    NsPid pid;  // of the process whose pagemap the pages are in
    std::uint64_t start = 0, end = 0;
    bool operator==(const Range&) const = default;
  };
  struct Piece {
    NsPid pid;
    std::uint64_t vaddr = 0;
    std::span<const std::byte> pages;  // valid until the next call of take()
    std::uint64_t zeros = 0;           // instead of pages: so many bytes of nothing but zeros
    [[nodiscard]] std::uint64_t size() const { return zeros != 0 ? zeros : pages.size(); }
  };

  virtual ~PageSource() = default;
  // How many bytes of the range it has, from its start on; 0: it does not have the first page.
  [[nodiscard]] virtual std::uint64_t covers(const Range& range) const = 0;
  // To be asked for what it covers.  What arrives is in the order of the questions, in pieces.
  virtual Result<void> ask(const Range& range) = 0;
  // nullopt: nothing is here now.
  virtual Result<std::optional<Piece>> take() = 0;
  // Readable when take() has something; -1: take() has it as soon as it was asked for.
  [[nodiscard]] virtual int descriptor() const { return -1; }
  // Whether take() has something that the descriptor does not tell of.
  [[nodiscard]] virtual bool pending() const { return false; }
  // After an error of ask() or take(): tries to be of use again.  Everything has to be asked for anew.
  virtual Result<void> recover() { return {}; }
  // Nobody is going to ask again.
  virtual Result<void> finish() { return {}; }
};

}  // namespace ferry::lazy

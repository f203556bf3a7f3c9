// Pages out of a stopped tree on another host, by questions over a connection (wire.h, Verb::get).
#pragma once

#include <array>
#include <deque>
#include <memory>
#include <vector>

#include "base/unique_fd.h"
#include "lazy/endpoint.h"
#include "lazy/page_source.h"
#include "lazy/wire.h"

namespace ferry::lazy {

class RemoteSource final : public PageSource {
 public:
  // Errors: as connect_to.
  static Result<std::unique_ptr<RemoteSource>> connect(PageServerPlace place);

  // It has everything that nobody else has.
  [[nodiscard]] std::uint64_t covers(const Range& range) const override { return range.end - range.start; }
  Result<void> ask(const Range& range) override;
  Result<std::optional<Piece>> take() override;
  [[nodiscard]] int descriptor() const override { return socket_.get(); }
  Result<void> recover() override;
  // Tells the other side that it may let go of the pages.
  Result<void> finish() override;

 private:
  RemoteSource() = default;
  Result<std::size_t> read_some(std::byte* into, std::size_t size);
  Result<bool> read_header();

  PageServerPlace place_;
  UniqueFd socket_;
  std::deque<Range> asked_;  // answers come in the same order
  std::vector<std::byte> buffer_;
  std::array<std::byte, kHeaderSize> header_{};
  std::size_t have_header_ = 0;
  std::uint64_t body_left_ = 0;  // bytes of the current answer that have not been taken
  NsPid body_of_;
  std::uint64_t body_at_ = 0;  // the address of the next one
  std::size_t have_body_ = 0;  // bytes in the buffer
  bool handed_out_ = false;    // the buffer's whole pages belong to the last piece
};

}  // namespace ferry::lazy

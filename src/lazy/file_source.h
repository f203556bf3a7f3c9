// Pages out of the pages files of an image set and its parents, through mappings of these.
#pragma once

#include <deque>
#include <map>
#include <vector>

#include "image/page_store.h"
#include "lazy/page_source.h"

namespace ferry::lazy {

class FileSource final : public PageSource {
 public:
  FileSource() = default;
  FileSource(const FileSource&) = delete;
  FileSource& operator=(const FileSource&) = delete;
  ~FileSource() override;

  // The extents of a process that have content here; sorted.  Their files have to stay open.
  Result<void> add(NsPid pid, const std::vector<image::Extent>& extents);

  [[nodiscard]] std::uint64_t covers(const Range& range) const override;
  Result<void> ask(const Range& range) override;
  // A piece that turns out not to be readable shows when it is copied.
  Result<std::optional<Piece>> take() override;

 private:
  struct File {
    const std::byte* base = nullptr;
    std::uint64_t size = 0;
  };
  [[nodiscard]] const image::Extent* find(NsPid pid, std::uint64_t address) const;

  std::map<int, File> files_;  // by descriptor
  std::map<NsPid, std::vector<image::Extent>> extents_;
  std::deque<Piece> ready_;
};

}  // namespace ferry::lazy

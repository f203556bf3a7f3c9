// Pages of another process into a sink: scattered ranges, gathered into buffers that stay in the cache
// between reading and writing.
#pragma once

#include <sys/uio.h>

#include <memory>
#include <vector>

#include "base/error.h"
#include "base/ids.h"
#include "image/page_sink.h"
#include "state/memory/read_pages.h"
#include "sys/pagemap.h"

namespace ferry::state::memory {

class Conveyor;
struct PageBuffer;

class Gather {
 public:
  // A running process may give up a page before it is read: the sink gets zeros for it, and lost() names it.
  enum class Source : std::uint8_t { stopped, running };
  // `memory`: an open /proc/PID/mem, which goes past the protection that the program gave its memory.
  Gather(HostPid pid, int memory, Source source, Reading reading, image::PageSink& sink);
  ~Gather();
  Gather(const Gather&) = delete;
  Gather& operator=(const Gather&) = delete;

  // Ascending.  With image::kPresent in `flags` the content is read.
  Result<void> add(std::uint64_t start, std::uint64_t end, std::uint32_t flags);
  // Waits until everything is with the sink.
  Result<void> finish();
  [[nodiscard]] const std::vector<sys::PageRange>& lost() const { return lost_; }

 private:
  Result<void> read();
  Result<void> read_one(const iovec& range, std::size_t at);

  HostPid pid_;
  int memory_;
  Source source_;
  Reading reading_;
  image::PageSink& sink_;
  std::unique_ptr<Conveyor> conveyor_;
  std::unique_ptr<PageBuffer> buffer_;
  std::vector<iovec> remote_;  // noted, not read yet
  std::size_t reserved_ = 0;   // bytes of the buffer that are spoken for
  std::vector<sys::PageRange> lost_;
};

}  // namespace ferry::state::memory

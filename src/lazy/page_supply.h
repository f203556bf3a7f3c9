// The pages of a stopped tree, for who asks for them over a connection (wire.h, Verb::get).
#pragma once

#include <map>
#include <vector>

#include "base/error.h"
#include "base/ids.h"
#include "base/unique_fd.h"
#include "lazy/endpoint.h"
#include "lazy/wire.h"
#include "state/memory/page_set.h"

namespace ferry::lazy {

class PageSupply {
 public:
  // Clients can connect from now on.  Errors: as listen_at.
  static Result<PageSupply> open(const PageServerPlace& place);
  PageSupply() = default;

  // Pages of a process that does not run.  `memory`: its /proc/PID/mem, open as long as this serves.
  void offer(NsPid name, HostPid pid, int memory, std::uint64_t start, std::uint64_t end);
  // Until a client says that it needs nothing more, or leaves when everything was fetched.  A connection that is lost
  // is no reason to end: some of the pages may be nowhere else.
  Result<void> serve();
  [[nodiscard]] Result<std::uint16_t> port() const { return port_of(listener_.get()); }
  [[nodiscard]] std::uint64_t offered_bytes() const { return offered_bytes_; }

 private:
  struct Process {
    HostPid pid;
    int memory = -1;
    state::memory::PageSet offered, left;
  };
  Result<void> await_client();
  // False: the client is done.  Errors: of this client only.
  Result<bool> obey();
  Result<void> give(const Command& get);
  [[nodiscard]] bool all_fetched() const;

  UniqueFd listener_;
  std::optional<state::TlsFiles> tls_;
  UniqueFd client_;
  bool given_ = false;  // the connection was made by somebody else: there is no second one
  std::map<NsPid, Process> processes_;
  std::uint64_t offered_bytes_ = 0;
  std::vector<std::byte> buffer_;
};

}  // namespace ferry::lazy

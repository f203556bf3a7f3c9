#include "lazy/page_supply.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "base/log.h"
#include "image/page_store.h"
#include "sys/memory.h"

namespace ferry::lazy {
namespace {

constexpr std::uint64_t kMostAtOnce = 1U << 20;  // a client that wants more asks again for the rest

}  // namespace

Result<PageSupply> PageSupply::open(const PageServerPlace& place) {
  PageSupply out;
  out.tls_ = place.tls;
  if (place.socket >= 0) {
    out.given_ = true;
    FERRY_TRY(out.client_, take_client(place));
  } else {
    FERRY_TRY(out.listener_, listen_at(place));
    FERRY_TRY(const std::uint16_t port, port_of(out.listener_.get()));
    log::info("pages are to be had at port {}", port);
  }
  out.buffer_.resize(kMostAtOnce);
  return out;
}

void PageSupply::offer(NsPid name, HostPid pid, int memory, std::uint64_t start, std::uint64_t end) {
  Process& process = processes_[name];
  process.pid = pid;
  process.memory = memory;
  process.offered.add(start, end);
  process.left.add(start, end);
  offered_bytes_ += end - start;
}

bool PageSupply::all_fetched() const {
  return std::all_of(processes_.begin(), processes_.end(), [](const auto& p) { return p.second.left.empty(); });
}

Result<void> PageSupply::serve() {
  for (;;) {
    FERRY_CHECK(await_client());
    const auto more = obey();
    if (more.has_value() && !*more) {
      return {};
    }
    if (more.has_value()) {
      continue;
    }
    if (all_fetched()) {
      log::info("everything was fetched, and the client has left");
      return {};
    }
    log::error(more.error());
    if (given_) {
      return fail(Kind::gone, "the connection that was given to us is lost, and pages were not fetched");
    }
    log::warning("the tree stays stopped until a client has fetched the rest");
    client_.reset();
  }
}

// Until there is something to be read from a client.  One that connects takes the place of the last, which may hang
// on a connection that nobody has told us is dead.
Result<void> PageSupply::await_client() {
  for (;;) {
    pollfd ready[] = {{client_.get(), POLLIN, 0}, {listener_.get(), POLLIN, 0}};  // poll(2) passes over -1
    if (::poll(ready, 2, -1) < 0) {
      if (errno == EINTR) {
        continue;
      }
      return sys_fail("poll(page clients)");
    }
    if (ready[1].revents != 0) {
      auto client = accept_from(listener_.get(), tls_);
      if (client.has_value()) {
        log::info("a client fetches pages");
        client_ = std::move(*client);
      } else {
        log::warning("a client was not taken: {}", client.error().message());
      }
      continue;
    }
    if (ready[0].revents != 0) {
      return {};
    }
  }
}

Result<bool> PageSupply::obey() {
  FERRY_TRY(const auto command, receive(client_.get()));
  if (!command.has_value()) {
    return fail(Kind::gone, "the client has left before it had all pages");
  }
  switch (static_cast<Verb>(command->verb)) {
    case Verb::get:
      FERRY_CHECK(give(*command));
      return true;
    case Verb::close:
    case Verb::force_close: {
      const std::int32_t good = 0;
      if (::send(client_.get(), &good, sizeof good, MSG_NOSIGNAL) != sizeof good) {
        log::warning("the client did not wait for the answer to its last word");
      }
      return false;
    }
    default:
      return fail(Kind::corrupt, "command {:#x} of a client that may only fetch pages", command->verb);
  }
}

Result<void> PageSupply::give(const Command& get) {
  const auto found = processes_.find(NsPid(static_cast<pid_t>(get.destination)));
  if (found == processes_.end() || get.destination > INT32_MAX) {
    return fail(Kind::corrupt, "the client asks for pages of process {}, which has none here", get.destination);
  }
  Process& process = found->second;
  const std::uint64_t pages = std::min(get.pages, kMostAtOnce / image::kPageSize);
  const std::uint64_t bytes = pages * image::kPageSize;
  if (pages == 0 || get.vaddr > UINT64_MAX - bytes || !process.offered.covers(get.vaddr, get.vaddr + bytes)) {
    return fail(Kind::corrupt, "the client asks for {} pages at {:#x} of process {}, which are not all here", pages,
                get.vaddr, get.destination);
  }
  const auto room = std::span(buffer_).first(static_cast<std::size_t>(bytes));
  FERRY_CHECK(sys::read_memory(process.pid, get.vaddr, room, process.memory));
  Command answer = command(Verb::add_f, get.destination);
  answer.flags = image::kPresent;
  answer.pages = pages;
  answer.vaddr = get.vaddr;
  FERRY_CHECK(send(client_.get(), answer, room));
  process.left.remove(get.vaddr, get.vaddr + bytes);
  return {};
}

}  // namespace ferry::lazy

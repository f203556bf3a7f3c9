#include "state/inet_socket/collect_options.h"

#include <fcntl.h>

#include <algorithm>
#include <future>
#include <thread>

#include "state/inet_socket/inet_socket.h"
#include "state/socket/options.h"
#include "sys/file.h"

namespace ferry::state::inet_socket {
namespace {

constexpr std::size_t kWorthAThread = 32;  // sockets; they take longer than a thread's start
constexpr std::size_t kMostThreads = 4;

}  // namespace

void OptionsCollector::add(const pb::InetSkEntry& entry, int ours, const Networks::Place& network, bool connected,
                           std::string subject) {
  jobs_.push_back({entry.id(), ours, &network, connected, std::move(subject)});
}

Result<void> OptionsCollector::run(const std::map<std::uint32_t, pb::InetSkEntry*>& entries) {
  if (jobs_.empty()) {
    return {};
  }
  for (const Job& job : jobs_) {
    FERRY_CHECK(more_.prepare(job.ours, *job.network, job.subject));
  }
  const std::size_t threads = std::clamp<std::size_t>(
      std::min<std::size_t>(jobs_.size() / kWorthAThread, std::thread::hardware_concurrency()), 1, kMostThreads);
  const auto share = [&](std::size_t number) -> Result<void> {
    for (std::size_t i = number; i < jobs_.size(); i += threads) {
      FERRY_CHECK(ask(jobs_[i], *entries.at(jobs_[i].id)));
    }
    return {};
  };
  std::vector<std::future<Result<void>>> others;
  for (std::size_t number = 1; number < threads; ++number) {
    others.push_back(std::async(std::launch::async, share, number));
  }
  Result<void> outcome = share(0);
  for (auto& other : others) {
    auto theirs = other.get();
    if (outcome.has_value()) {
      outcome = std::move(theirs);
    }
  }
  return outcome;
}

// Every entry belongs to one thread alone.
Result<void> OptionsCollector::ask(const Job& job, pb::InetSkEntry& entry) const {
  FERRY_CHECK(socket::collect_options(job.ours, job.subject, *entry.mutable_opts()));
  FERRY_CHECK(collect_ip_options(job.ours, entry).during("{}", job.subject));
  if (entry.has_tcp_opts()) {
    FERRY_CHECK(collect_tcp_options(job.ours, job.subject, *entry.mutable_tcp_opts()).during("{}", job.subject));
  }
  return more_.collect(job.ours, *job.network, job.connected, *entry.mutable_ferry_options());
}

}  // namespace ferry::state::inet_socket

#include "migrate/door.h"

#include <fcntl.h>
#include <sys/stat.h>

#include "base/log.h"
#include "sys/file.h"

namespace ferry::migrate {
namespace {

namespace net_gate = state::net_gate;

Result<UniqueFd> own_namespace_of(HostPid root) {
  FERRY_TRY(auto ns, sys::open(fmt::format("/proc/{}/ns/net", root), O_RDONLY));
  FERRY_TRY(const auto theirs, sys::stat_fd(ns.get(), "a network namespace"));
  FERRY_TRY(const UniqueFd own, sys::open("/proc/self/ns/net", O_RDONLY));
  FERRY_TRY(const auto ours, sys::stat_fd(own.get(), "our network namespace"));
  return theirs.st_ino == ours.st_ino ? UniqueFd() : std::move(ns);
}

}  // namespace

Result<Door> Door::of(HostPid root) {
  Door out;
  FERRY_TRY(out.ns_, own_namespace_of(root));
  return out;
}

Result<void> Door::prepare() {
  if (exists()) {
    FERRY_TRY(gate_, net_gate::Gate::hang(ns_.get()));
  }
  return {};
}

Result<void> Door::hold_back_new_connections() {
  if (exists()) {
    FERRY_TRY(withheld_, net_gate::Withheld::begin(ns_.get()));
  }
  return {};
}

Result<void> Door::withhold() { return withheld_.has_value() ? withheld_->widen() : Result<void>(); }

Result<std::vector<std::string>> Door::arrived() {
  if (!withheld_.has_value()) {
    return std::vector<std::string>();
  }
  FERRY_CHECK(withheld_->collect());
  const auto& all = withheld_->packets();
  std::vector<std::string> out(all.begin() + static_cast<std::ptrdiff_t>(taken_), all.end());
  taken_ = all.size();
  return out;
}

Result<void> Door::shut() { return gate_ ? gate_.shut() : Result<void>(); }

void Door::reopen() {
  if (!exists()) {
    return;
  }
  if (auto opened = net_gate::open(ns_.get()); !opened) {
    log::error(opened.error());
  }
  if (withheld_.has_value()) {
    if (auto in = withheld_->let_in(); !in) {
      log::warning("{}", in.error().message());
    }
    withheld_.reset();
  }
}

void Door::leave_shut() {
  if (withheld_.has_value()) {
    if (auto gone = withheld_->discard(); !gone) {
      log::debug("{}", gone.error().message());
    }
    withheld_.reset();
  }
}

Result<void> reopen_door_of(HostPid root) {
  FERRY_TRY(const UniqueFd ns, own_namespace_of(root));
  return ns ? net_gate::open(ns.get()) : Result<void>();
}

}  // namespace ferry::migrate

#include "migrate/revival.h"

#include <fcntl.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include "migrate/doubt.h"
#include "migrate/settle.h"
#include "sys/file.h"

namespace ferry::migrate {
namespace {

constexpr std::chrono::seconds kPatience(180);  // a remote shell may take its time to find that nobody answers
constexpr std::chrono::milliseconds kPoll(200);

std::string wish_path(const std::string& move) { return fmt::format("{}/{}.revive", kMovesDirectory, move); }

// Whatever the user believes.
Error has_it(const GivenRecord& record) {
  return Error{
      .kind = Kind::invalid,
      .what = fmt::format("{} answers, and says that it has container {}: run here as well, it would have two lives",
                          record.destination, record.container_name),
      .during = {}};
}

}  // namespace

bool revival_is_wished(const std::string& move) { return ::access(wish_path(move).c_str(), F_OK) == 0; }

void forget_revival(const std::string& move) {
  if (check_move_id(move)) {
    ::unlink(wish_path(move).c_str());
  }
}

Result<std::string> revive(const GivenRecord& record) {
  const auto fate = ask_fate(record.rsh, record.destination, record.move);
  if (fate.has_value() && fate->decision == Decision::taken && !fate->lost) {
    forget_revival(record.move);
    return tl::unexpected<Error>(has_it(record));
  }
  FERRY_TRY(std::string sentence, act(record, Decision::refused));
  forget_revival(record.move);
  if (!fate.has_value()) {
    sentence = fmt::format(
        "container {} runs on here as it was when it was given to {}; should that host come back, end the container "
        "there before it does anything (docker rm --force {})",
        record.container_name, record.destination, record.container_name);
  } else if (fate->lost) {
    sentence = fmt::format(
        "container {} runs on here as it was when it was given to {}, where it was ended before it had its memory",
        record.container_name, record.destination);
  }
  return sentence;
}

Result<std::string> revive_source(const Entry& entry) {
  const auto given = read_given(entry.move);
  if (entry.role != Role::source || !given.has_value()) {
    return fail(Kind::invalid, "container {} was not given away by this host: there is nothing to revive",
                entry.container_name);
  }
  if (const auto fate = ask_fate(given->rsh, given->destination, given->move);
      fate.has_value() && fate->decision == Decision::taken && !fate->lost) {
    return tl::unexpected<Error>(has_it(*given));
  }
  FERRY_TRY(const UniqueFd wish, sys::open(wish_path(entry.move), O_WRONLY | O_CREAT, 0600));
  const auto end = std::chrono::steady_clock::now() + kPatience;
  for (;;) {
    FERRY_TRY(const Entry now, read_entry(entry.move, entry.role));
    if (now.ended != 0) {
      return now.reason;
    }
    if (!is_at_work(now)) {
      if (auto settled = settle(entry.move, entry.role); settled || !revival_is_wished(entry.move)) {
        return settled;
      }
    }
    if (std::chrono::steady_clock::now() > end) {
      return fail(
          Kind::os,
          "the ferry that has the move of container {} in hand (process {}) has not let it run on within {} s; it is to do "
          "so when it finds that {} does not answer",
          entry.container_name, now.pid, kPatience.count(), given->destination);
    }
    std::this_thread::sleep_for(kPoll);
  }
}

}  // namespace ferry::migrate

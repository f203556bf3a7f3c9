// ferry ps, ferry cancel, ferry resume and ferry resolve: the moves of this host.
#include <signal.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>

#include "migrate/cancel.h"
#include "migrate/logbook.h"
#include "migrate/post_copy_line.h"
#include "migrate/revival.h"
#include "migrate/settle.h"
#include "programs/ferry/command.h"

namespace ferry::program {
namespace {

using Json = nlohmann::json;
using migrate::Entry;
using migrate::Outcome;

// "fetching": the container runs on the destination and its memory follows; "cut": so it does, and nothing comes now,
// so that it waits.  "doubt": the other host has to say who has the container.  "broken": no ferry and no guard has it
// in hand, or the guard is not done yet.
std::string_view state_of(const Entry& entry, bool given) {
  if (entry.ended != 0) {
    return entry.outcome == Outcome::moved ? "moved" : "stayed";
  }
  const bool at_work = is_at_work(entry);
  if (entry.step == migrate::Step::pages) {
    return !at_work ? "broken" : entry.disconnected ? "cut" : "fetching";
  }
  if (entry.in_doubt || (given && !at_work)) {
    return "doubt";
  }
  return at_work ? "running" : "broken";
}

std::string since_text(std::int64_t seconds) {
  const auto now =
      std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
  const auto past = std::max<std::int64_t>(now - seconds, 0);
  if (past < 120) {
    return fmt::format("{} s", past);
  }
  if (past < 7200) {
    return fmt::format("{} min", past / 60);
  }
  return fmt::format("{} h", past / 3600);
}

std::string utc_text(std::int64_t seconds) {
  const std::time_t at = seconds;
  std::tm parts{};
  ::gmtime_r(&at, &parts);
  std::array<char, 32> text{};
  const std::size_t length = std::strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%SZ", &parts);
  return {text.data(), length};
}

Json to_json(const Entry& entry, std::string_view state) {
  Json out = {{"move", entry.move},
              {"role", migrate::name_of(entry.role)},
              {"container", entry.container_name},
              {"container_id", entry.container_id},
              {"other_host", entry.peer},
              {"state", state},
              {"phase", info_of(entry.step).name},
              {"round", entry.round},
              {"pages_left", entry.pages_left},
              {"began", utc_text(entry.began)},
              {"changed", utc_text(entry.changed)}};
  if (entry.ended != 0) {
    out["ended"] = utc_text(entry.ended);
    out["reason"] = entry.reason;
  } else {
    out["process"] = entry.pid;
  }
  return out;
}

Result<void> list(bool json) {
  FERRY_TRY(const auto all, migrate::entries());
  FERRY_TRY(const auto given, migrate::given_moves());
  Json objects = Json::array();
  std::vector<std::array<std::string, 8>> rows{
      {"MOVE", "CONTAINER", "ROLE", "OTHER HOST", "STATE", "PHASE", "ROUND", "SINCE"}};
  for (const Entry& entry : all) {
    const bool is_given =
        entry.role == migrate::Role::source && std::find(given.begin(), given.end(), entry.move) != given.end();
    const std::string_view state = state_of(entry, is_given);
    if (json) {
      objects.push_back(to_json(entry, state));
      continue;
    }
    const bool over = entry.ended != 0;
    rows.push_back({entry.move.substr(0, 12), entry.container_name, std::string(migrate::name_of(entry.role)),
                    entry.peer, std::string(state), over ? "-" : std::string(info_of(entry.step).name),
                    entry.round == 0 ? "-" : fmt::format("{}, {} pages left", entry.round, entry.pages_left),
                    since_text(over ? entry.ended : entry.began)});
  }
  if (json) {
    fmt::print("{}\n", objects.dump(-1, ' ', false, Json::error_handler_t::replace));
    return {};
  }
  std::array<std::size_t, 8> widths{};
  for (const auto& row : rows) {
    for (std::size_t i = 0; i < row.size(); ++i) {
      widths[i] = std::max(widths[i], row[i].size());
    }
  }
  for (const auto& row : rows) {
    for (std::size_t i = 0; i < row.size(); ++i) {
      fmt::print("{:<{}}", row[i], i + 1 == row.size() ? 0 : widths[i] + 3);
    }
    fmt::print("\n");
  }
  return {};
}

Result<void> cancel(const std::string& wanted) {
  FERRY_TRY(const Entry entry, migrate::find_move(wanted));
  FERRY_TRY(const std::string sentence, migrate::cancel(entry));
  fmt::print("{}\n", sentence);
  return {};
}

// A move whose container runs on the other host and waits for memory that is here.
Result<void> resume(const std::string& wanted, const std::string& via) {
  FERRY_TRY(const Entry entry, migrate::find_move(wanted));
  if (entry.role != migrate::Role::source) {
    return fail(Kind::invalid, "the memory of container {} is on {}: \"ferry resume\" there", entry.container_name,
                entry.peer);
  }
  if (!via.empty()) {
    FERRY_CHECK(migrate::write_detour(entry.move, via));
  }
  if (is_at_work(entry)) {
    fmt::print("the ferry that has the move of container {} in hand tries {} next\n", entry.container_name,
               via.empty() ? entry.peer : via);
    return {};
  }
  FERRY_TRY(const std::string sentence, migrate::settle(entry.move, entry.role));
  fmt::print("{}\n", sentence);
  return {};
}

Result<void> revive(const std::string& wanted) {
  FERRY_TRY(const Entry entry, migrate::find_move(wanted));
  FERRY_TRY(const std::string sentence, migrate::revive_source(entry));
  fmt::print("{}\n", sentence);
  return {};
}

Result<void> resolve_one(const std::string& wanted) {
  FERRY_TRY(const Entry entry, migrate::find_move(wanted));
  FERRY_TRY(const std::string sentence, migrate::settle(entry.move, entry.role));
  fmt::print("{}\n", sentence);
  return {};
}

Result<void> resolve_all() {
  FERRY_TRY(const auto waiting, migrate::unsettled());
  std::size_t failed = 0;
  for (const auto& move : waiting) {
    const auto settled = migrate::settle(move.move, move.role);
    if (settled) {
      fmt::print("{}\n", *settled);
      continue;
    }
    ++failed;
    fmt::print("container {}: {}\n", move.container_name, settled.error().message());
  }
  if (waiting.empty()) {
    fmt::print("every move on this host is settled or in the hands of a ferry that runs\n");
  }
  if (failed > 0) {
    return fail(Kind::os, "{} of {} moves could not be settled", failed, waiting.size());
  }
  return {};
}

// A remote shell that ends at once is an error like others, not the end of us.
std::function<Result<void>()> with_remote_shells(std::function<Result<void>()> run) {
  return [run = std::move(run)] {
    ::signal(SIGPIPE, SIG_IGN);
    return run();
  };
}

}  // namespace

void add_moves(CLI::App& root, Commands& commands) {
  CLI::App* listed =
      root.add_subcommand("ps", "List the moves of this host: those that run, wait, or ended within a day");
  const auto json = std::make_shared<bool>(false);
  listed->add_flag("--json", *json, "Print one JSON array and nothing else");
  commands.push_back({listed, true, [json] { return list(*json); }});

  CLI::App* cancelled = root.add_subcommand("cancel", "Stop a move; the container stays where it was");
  const auto wanted = std::make_shared<std::string>();
  cancelled->add_option("MOVE|CONTAINER", *wanted, "Id of the move, as ferry ps shows it, or the container")
      ->required();
  commands.push_back({cancelled, true, with_remote_shells([wanted] { return cancel(*wanted); })});

  CLI::App* resumed = root.add_subcommand(
      "resume", "Reach the other host again, for a container that runs there and waits for its memory");
  const auto move = std::make_shared<std::string>();
  const auto via = std::make_shared<std::string>();
  resumed->add_option("MOVE|CONTAINER", *move, "Id of the move, as ferry ps shows it, or the container")->required();
  resumed->add_option("--via", *via, "Another way to the other host, as the remote shell knows it")
      ->type_name("ADDRESS");
  commands.push_back({resumed, true, with_remote_shells([move, via] { return resume(*move, *via); })});

  CLI::App* resolved = root.add_subcommand("resolve", "Settle moves that lost their connection or their ferry");
  const auto id = std::make_shared<std::string>();
  resolved->add_option("MOVE|CONTAINER", *id, "Only this one; without it all that this host can settle");
  const auto revived = std::make_shared<bool>(false);
  resolved
      ->add_flag(
          "--revive-source", *revived,
          "Of a container that was given to a host which is lost for good: let it run on here as it was then. If that host is "
          "not lost but only out of reach, the container has two lives: what it did there is not known here")
      ->needs(resolved->get_option("MOVE|CONTAINER"));
  commands.push_back({resolved, true, with_remote_shells([id, revived] {
                        return *revived ? revive(*id) : id->empty() ? resolve_all() : resolve_one(*id);
                      })});
}

}  // namespace ferry::program

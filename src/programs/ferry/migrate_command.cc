// ferry migrate CONTAINER DEST.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <array>
#include <cmath>
#include <ctime>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "migrate/direct.h"
#include "migrate/report_page.h"
#include "migrate/send.h"
#include "programs/ferry/command.h"

namespace ferry::program {
namespace {

using Json = nlohmann::json;

Json list_of(const std::vector<migrate::Phase>& phases) {
  Json out = Json::array();
  for (const migrate::Phase& phase : phases) {
    out.push_back({{"name", phase.name}, {"ms", phase.ms}, {"bytes", phase.bytes}});
  }
  return out;
}

Json rounds_of(const std::vector<migrate::Round>& rounds) {
  Json out = Json::array();
  for (const migrate::Round& round : rounds) {
    out.push_back({{"ms", round.ms},
                   {"scan_ms", round.scan_ms},
                   {"files_ms", round.files_ms},
                   {"bytes", round.bytes},
                   {"wire_bytes", round.wire},
                   {"dirty_bytes", round.dirty},
                   {"throttle_percent", std::lround((1 - round.share) * 100)},
                   {"predicted_pause_ms", round.predicted_ms}});
  }
  return out;
}

std::string to_json(const migrate::SendReport& report, const migrate::SendOptions& options) {
  const Json out = {{"container", report.container},
                    {"destination", options.destination},
                    {"pause_ms", report.pause_ms},
                    {"pause_error_ms", report.pause_error_ms},
                    {"predicted_pause_ms", report.predicted_pause_ms},
                    {"streams", report.streams},
                    {"bytes", report.bytes},
                    {"image_bytes", report.image_bytes},
                    {"layer_bytes", report.layer_bytes},
                    {"memory_bytes", report.memory_bytes},
                    {"postponed_bytes", report.postponed_bytes},
                    {"fetched",
                     {{"pages", report.fetched.pages},
                      {"ms", report.fetched.ms},
                      {"faults", report.fetched.faults},
                      {"fault_median_us", report.fetched.median_us},
                      {"fault_p99_us", report.fetched.p99_us}}},
                    {"rounds", rounds_of(report.rounds)},
                    {"phases", list_of(report.phases)},
                    {"pause_parts", list_of(report.pause_parts)},
                    {"notes", report.notes}};
  return out.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string local_time() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  ::localtime_r(&now, &parts);
  std::array<char, 64> text{};
  return {text.data(), std::strftime(text.data(), text.size(), "%Y-%m-%d %H:%M:%S %Z", &parts)};
}

// The container has moved, whatever becomes of the page.
void write_page(const std::string& path, const migrate::SendReport& report, const migrate::SendOptions& options) {
  const migrate::PageFacts facts{.destination = options.destination,
                                 .when = local_time(),
                                 .downtime_limit_ms = static_cast<double>(options.downtime_limit.count())};
  if (auto written = migrate::write_report_page(path, report, facts); !written) {
    print_notes({"the report was not written: " + written.error().message()});
  }
}

Result<void> move(const migrate::SendOptions& options, const std::string& page) {
  FERRY_TRY(const auto report, migrate::send(options));
  if (!page.empty()) {
    write_page(page, report, options);
  }
  if (options.quiet) {
    fmt::print("{}\n", to_json(report, options));
    return {};
  }
  print_notes(report.notes);
  fmt::print("{} runs on {}: pause {:.1f} ms (give or take {:.1f}), {} sent\n", report.container, options.destination,
             report.pause_ms, report.pause_error_ms, migrate::byte_text(report.bytes));
  if (report.postponed_bytes != 0) {
    fmt::print(
        "{} of its memory followed within {:.1f} s; {} times it had to wait for a page, half of them {} us at most and 99 % {} us\n",
        migrate::byte_text(report.postponed_bytes), report.fetched.ms / 1000, report.fetched.faults,
        report.fetched.median_us, report.fetched.p99_us);
  }
  return {};
}

}  // namespace

void add_migrate(CLI::App& root, Commands& commands) {
  CLI::App* moved = root.add_subcommand("migrate", "Move a running container to another host");
  const auto options = std::make_shared<migrate::SendOptions>();
  moved->add_option("CONTAINER", options->container, "Name or id of the container")->required();
  moved->add_option("DEST", options->destination, "The other host, as the remote shell knows it")->required();
  moved->add_option("--rsh", options->rsh, "Remote shell, called as COMMAND DEST ferry receive")->capture_default_str();
  moved->add_flag("--keep-source", options->keep_source, "Keep the stopped container instead of removing it");
  moved->add_flag("--drop-exec", options->drop_exec, "Go on although docker exec sessions are not kept");
  moved->add_flag("--tcp-close", options->tcp_close, "Close established TCP connections instead of refusing");
  const std::map<std::string, migrate::Mode> modes{{"auto", migrate::Mode::automatic},
                                                   {"pre-copy", migrate::Mode::pre_copy},
                                                   {"post-copy", migrate::Mode::post_copy}};
  moved
      ->add_option(
          "--mode", options->mode,
          "pre-copy: all memory is sent before the container runs on DEST; post-copy: it runs there first; auto: pre-copy, "
          "and what no round brings down follows later")
      ->transform(CLI::CheckedTransformer(modes))
      ->type_name("MODE")
      ->default_str("auto");
  moved->add_flag("!--no-precopy", options->precopy, "Stop first, then send all of the memory");
  moved
      ->add_option_function<unsigned>(
          "--downtime-limit", [options](unsigned ms) { options->downtime_limit = std::chrono::milliseconds(ms); },
          "Send memory in rounds until the rest takes no longer than this")
      ->type_name("MS")
      ->default_str("20");
  moved->add_option("--max-rounds", options->max_rounds, "Rounds before giving up")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  moved
      ->add_option_function<unsigned>(
          "--timeout", [options](unsigned seconds) { options->timeout = std::chrono::seconds(seconds); },
          "Time for the rounds before giving up")
      ->type_name("SECONDS")
      ->default_str("600");
  moved
      ->add_flag("--auto-converge,!--no-auto-converge", options->auto_converge,
                 "Slow the container down step by step while it writes faster than its memory can be sent")
      ->capture_default_str();
  moved->add_flag("--switch-anyway", options->switch_anyway, "Move with a longer pause instead of giving up");
  moved->add_option("--streams", options->streams.count, "Direct connections beside the remote shell")
      ->check(CLI::Range(1U, migrate::kMostStreams))
      ->capture_default_str();
  moved->add_flag("--tunnel", options->streams.tunnel, "Send everything through the remote shell");
  moved->add_option("--address", options->streams.address,
                    "Address at which DEST is reached directly; without it the one that the remote shell has used");
  moved->add_option("--port", options->streams.port,
                    "Port for direct connections; without it any that is free on DEST");
  moved
      ->add_option("--bandwidth", options->streams.bandwidth,
                   "Send no more than this in a second, until the pause: 50M, 1G")
      ->transform(CLI::AsSizeValue(false))
      ->type_name("BYTES");
  moved->add_flag("--compress", options->streams.compress, "Pack memory with zstd where that makes it smaller");
  moved
      ->add_option_function<std::vector<std::string>>(
          "--volume",
          [options](const std::vector<std::string>& names) {
            options->volumes.only = {names.begin(), names.end()};
          },
          "Copy this volume and no others (may be said several times); without it all of the local driver are copied")
      ->allow_extra_args(false)
      ->type_name("NAME");
  moved
      ->add_flag("--no-volumes", options->volumes.none,
                 "Copy no volume: the container finds what DEST has of that name, or an empty one")
      ->excludes("--volume");
  moved->add_flag("--replace-volumes", options->volumes.replace,
                  "Let a copied volume take the place of what DEST has under its name");
  moved->add_flag("--json", options->quiet, "Print one JSON object and nothing else");
  const auto page = std::make_shared<std::string>();
  moved->add_option("--report", *page, "Write a page of HTML that shows where the time went")->type_name("FILE");
  commands.push_back({moved, true, [options, page] { return move(*options, *page); }});
}

}  // namespace ferry::program

// ferry: the command of the user.
#include <curl/curl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>

#include "base/log.h"
#include "programs/ferry/command.h"

namespace ferry::program {

void print_notes(const std::vector<std::string>& notes) {
  for (const std::string& note : notes) {
    fmt::print(stderr, "ferry: note: {}\n", note);
  }
}

namespace {

constexpr int kFailure = 1;
constexpr int kUsage = 2;

int run(const Commands& commands) {
  for (const Command& command : commands) {
    if (!command.app->parsed()) {
      continue;
    }
    if (command.needs_root && ::geteuid() != 0) {
      fmt::print(stderr, "ferry: Error: ferry {} has to read other users' processes: run it as root\n",
                 command.app->get_name());
      return kFailure;
    }
    if (auto done = command.run(); !done) {
      fmt::print(stderr, "ferry: Error: {}\n", done.error().message());
      return kFailure;
    }
    return std::fflush(stdout) == 0 ? 0 : kFailure;
  }
  return kUsage;
}

}  // namespace
}  // namespace ferry::program

int main(int argc, char** argv) {
  ferry::log::configure({});
  // Not thread-safe in itself, so before there are threads.
  curl_global_init(CURL_GLOBAL_ALL);
  CLI::App root{"Checkpoints running Docker containers, restores them, and moves them between hosts.", "ferry"};
  root.require_subcommand(1);
  root.add_flag_callback(
      "-v,--verbose", [] { ferry::log::configure({.level = ferry::log::Level::debug, .timestamps = true}); },
      "Tell every step on standard error");
  ferry::program::Commands commands;
  ferry::program::add_checkpoint(root, commands);
  ferry::program::add_start(root, commands);
  ferry::program::add_migrate(root, commands);
  ferry::program::add_moves(root, commands);
  ferry::program::add_receive(root, commands);
  ferry::program::add_image(root, commands);
  ferry::program::add_version(root, commands);
  try {
    root.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    // CLI11 has a code for each kind of mistake; callers want to know only that it was the command line.
    return root.exit(error) == 0 ? 0 : ferry::program::kUsage;
  }
  return ferry::program::run(commands);
}

#include "programs/criu/command_line.h"

#include <getopt.h>

#include "programs/criu/config_file.h"
#include "programs/criu/option_table.h"
#include "programs/criu/option_value.h"

namespace ferry::criu {
namespace {

// What getopt_long returns for long options: above every letter.
constexpr int kFirstOption = 1000;
constexpr int kFirstNegated = 2000;

struct Given {
  const Option* option;
  bool negated;
  std::string text;
};

struct Parsed {
  std::vector<Given> options;
  std::vector<std::string> words;
  bool help = false;
  bool version = false;
};

struct GetoptTables {
  std::string letters = "hV";
  std::vector<std::string> negated_names;  // owns what `longs` points to
  std::vector<option> longs;
};

int has_arg(Argument argument) {
  switch (argument) {
    case Argument::none:
      return no_argument;
    case Argument::required:
      return required_argument;
    case Argument::optional:
      return optional_argument;
  }
  return no_argument;
}

GetoptTables getopt_tables() {
  GetoptTables tables;
  const auto all = options();
  tables.negated_names.reserve(all.size());
  tables.longs.push_back({"help", no_argument, nullptr, 'h'});
  tables.longs.push_back({"version", no_argument, nullptr, 'V'});
  for (std::size_t i = 0; i < all.size(); ++i) {
    const Option& o = all[i];
    const int index = static_cast<int>(i);
    if (o.letter != 0) {
      tables.letters += o.letter;
      tables.letters.append(static_cast<std::size_t>(has_arg(o.argument)), ':');
    }
    tables.longs.push_back({o.name, has_arg(o.argument), nullptr, kFirstOption + index});
    if (o.negatable) {
      tables.negated_names.push_back(std::string("no-") + o.name);
      tables.longs.push_back({tables.negated_names.back().c_str(), no_argument, nullptr, kFirstNegated + index});
    }
  }
  tables.longs.push_back({nullptr, 0, nullptr, 0});
  return tables;
}

const Option* option_of_letter(int letter) {
  for (const Option& o : options()) {
    if (o.letter == letter) {
      return &o;
    }
  }
  return nullptr;
}

Result<Parsed> split(std::vector<std::string>& arguments) {
  Parsed parsed;
  const GetoptTables tables = getopt_tables();
  std::vector<char*> argv;
  for (std::string& a : arguments) {
    argv.push_back(a.data());
  }
  argv.push_back(nullptr);
  const int argc = static_cast<int>(arguments.size());
  const auto all = options();
  optind = 0;  // glibc: start afresh
  opterr = 0;  // the messages are ours
  for (;;) {
    const int code = getopt_long(argc, argv.data(), tables.letters.c_str(), tables.longs.data(), nullptr);
    const std::string text = optarg != nullptr ? optarg : "";
    if (code == -1) {
      break;
    }
    if (code == 'h') {
      parsed.help = true;
    } else if (code == 'V') {
      parsed.version = true;
    } else if (code == '?') {
      if (optopt > 0 && optopt < kFirstOption) {
        return fail(Kind::invalid, "option -{} is unknown or lacks its value", static_cast<char>(optopt));
      }
      return fail(Kind::invalid, "option {} is unknown, ambiguous, lacks its value or takes none",
                  argv[static_cast<std::size_t>(optind - 1)]);
    } else if (code >= kFirstNegated) {
      parsed.options.push_back({&all[static_cast<std::size_t>(code - kFirstNegated)], true, text});
    } else if (code >= kFirstOption) {
      parsed.options.push_back({&all[static_cast<std::size_t>(code - kFirstOption)], false, text});
    } else {
      parsed.options.push_back({option_of_letter(code), false, text});
    }
  }
  for (int i = optind; i < argc; ++i) {
    parsed.words.emplace_back(argv[static_cast<std::size_t>(i)]);
  }
  return parsed;
}

Result<void> no_more_words(const std::vector<std::string>& words, std::size_t count) {
  if (words.size() > count) {
    return fail(Kind::invalid, "\"{}\" is one word too many after {}", words[count], words[count - 1]);
  }
  return {};
}

Result<void> check_dump(const Settings& settings) {
  if (settings.dump.pid.value == 0) {
    return fail(Kind::invalid, "dump and pre-dump need the process to save: --tree PID");
  }
  if (!settings.restore.inherit_fds.empty()) {
    return fail(Kind::invalid, "option --inherit-fd belongs to restore");
  }
  return {};
}

// What only a server and its clients have a use for.
Result<void> check_no_server(const Settings& settings, std::string_view command) {
  const bool dump = command == "dump" || command == "pre-dump";
  if (!settings.address.empty() && !(dump && (settings.page_server || settings.lazy_pages))) {
    return fail(Kind::invalid, "option --address for {}: there is no page server without --page-server or --lazy-pages",
                command);
  }
  if (settings.status_fd >= 0 && !(dump && settings.lazy_pages)) {
    return tl::unexpected<Error>(not_supported(fmt::format("option --status-fd for {}", command),
                                               "it tells when a server listens, and none does here"));
  }
  if (dump && settings.page_server && settings.port == 0 && settings.ps_socket < 0) {
    return fail(Kind::invalid, "option --page-server needs the server's --port, or a connection by --ps-socket");
  }
  if (command == "pre-dump" && settings.lazy_pages) {
    return fail(Kind::invalid, "option --lazy-pages belongs to dump: a pre-dump leaves the tree running");
  }
  return {};
}

Result<void> check_page_server(const Settings& settings) {
  if (settings.port == 0 && settings.ps_socket < 0) {
    return fail(Kind::invalid, "page-server needs the --port to listen at, or a connection by --ps-socket");
  }
  return {};
}

Result<void> check_lazy_pages(const Settings& settings) {
  if (settings.page_server && settings.port == 0 && settings.ps_socket < 0) {
    return fail(Kind::invalid, "lazy-pages --page-server needs the --port of the dump, or a connection by --ps-socket");
  }
  return {};
}

Result<void> check_restore(Settings& settings, const std::vector<std::string>& words) {
  if (settings.restore.sibling && !settings.restore.detached) {
    return fail(Kind::invalid, "option --restore-sibling needs --restore-detached: only a parent can wait");
  }
  if (!settings.exec_after_restore) {
    return no_more_words(words, 1);
  }
  settings.exec_command.assign(words.begin() + 1, words.end());
  if (settings.exec_command.empty()) {
    return fail(Kind::invalid, "option --exec-cmd needs a command at the end: -- COMMAND…");
  }
  return {};
}

Result<void> parse_words(Invocation& run, const std::vector<std::string>& words) {
  if (words.empty()) {
    return fail(Kind::invalid,
                "a command is missing: dump, pre-dump, restore, check, dedup, cpuinfo or swrk, see criu --help");
  }
  const std::string& command = words.front();
  if (command == "service") {
    run.command = Command::service;
    return no_more_words(words, 1);
  }
  if (command == "exec" || command == "show") {
    run.command = Command::deprecated;
    run.deprecated = command;
    return {};
  }
  if (command == "page-server") {
    run.command = Command::page_server;
    FERRY_CHECK(no_more_words(words, 1));
    return check_page_server(run.settings);
  }
  if (command == "lazy-pages") {
    run.command = Command::lazy_pages;
    FERRY_CHECK(no_more_words(words, 1));
    return check_lazy_pages(run.settings);
  }
  FERRY_CHECK(check_no_server(run.settings, command));
  if (command == "dump") {
    run.command = Command::dump;
    FERRY_CHECK(no_more_words(words, 1));
    return check_dump(run.settings);
  }
  if (command == "pre-dump") {
    run.command = Command::pre_dump;
    FERRY_CHECK(no_more_words(words, 1));
    return check_dump(run.settings);
  }
  if (command == "dedup") {
    run.command = Command::dedup;
    return no_more_words(words, 1);
  }
  if (command == "restore") {
    run.command = Command::restore;
    return check_restore(run.settings, words);
  }
  if (command == "check") {
    run.command = Command::check;
    return no_more_words(words, 1);
  }
  if (command == "cpuinfo") {
    if (words.size() < 2 || (words[1] != "dump" && words[1] != "check")) {
      return fail(Kind::invalid, "cpuinfo needs a second word, dump or check");
    }
    run.command = words[1] == "dump" ? Command::cpuinfo_dump : Command::cpuinfo_check;
    return no_more_words(words, 2);
  }
  if (command == "swrk") {
    run.command = Command::swrk;
    if (words.size() != 2) {
      return fail(Kind::invalid, "Usage: criu swrk FD");
    }
    FERRY_TRY(run.swrk_fd, parse_number<int>("swrk", words[1]));
    return {};
  }
  return fail(Kind::invalid, "there is no command \"{}\", see criu --help", command);
}

}  // namespace

Result<Invocation> parse_command_line(std::vector<std::string> arguments) {
  FERRY_TRY(const Parsed parsed, split(arguments));
  Invocation run;
  if (parsed.help || parsed.version) {
    run.command = parsed.version ? Command::version : Command::help;
    return run;
  }
  // Which files to read stands on the command line, which the files come before.
  Settings files;
  for (const Given& given : parsed.options) {
    const std::string_view name = given.option->name;
    if (name == "config" || name == "no-default-config") {
      FERRY_CHECK(apply_option(files, *given.option, given.negated, given.text));
    }
  }
  run.settings = std::move(files);
  // criu(8): without --cpu-cap, floating point state and instructions are compared.
  run.settings.common.cpu_capability = static_cast<std::uint32_t>(engine::CpuCapability::fpu) |
                                       static_cast<std::uint32_t>(engine::CpuCapability::instructions);
  FERRY_CHECK(apply_config_files(run.settings));
  for (const Given& given : parsed.options) {
    FERRY_CHECK(apply_option(run.settings, *given.option, given.negated, given.text));
  }
  FERRY_CHECK(parse_words(run, parsed.words));
  return run;
}

}  // namespace ferry::criu

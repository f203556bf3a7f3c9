#include "programs/criu/config_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cstdlib>

#include "base/unique_fd.h"
#include "programs/criu/option_table.h"

namespace ferry::criu {
namespace {

constexpr std::string_view kBlanks = " \t\r\v\f";

// The rest of a line after its option: nothing, a bare word up to a blank, or a word in quotes.
Result<void> parse_value(std::string_view rest, ConfigLine& line) {
  const std::size_t start = rest.find_first_not_of(kBlanks);
  if (start == std::string_view::npos || rest[start] == '#') {
    return {};
  }
  rest.remove_prefix(start);
  line.has_value = true;
  std::size_t end = 0;
  if (rest.front() == '"') {
    for (end = 1; end < rest.size() && rest[end] != '"'; ++end) {
      if (rest[end] == '\\' && end + 1 < rest.size() && rest[end + 1] == '"') {
        ++end;
      }
      line.value += rest[end];
    }
    if (end >= rest.size()) {
      return fail(Kind::invalid, "line {}: a quote is not closed", line.number);
    }
    ++end;
  } else {
    end = std::min(rest.find_first_of(kBlanks), rest.size());
    line.value = rest.substr(0, end);
  }
  const std::size_t more = rest.find_first_not_of(kBlanks, end);
  if (more != std::string_view::npos && rest[more] != '#') {
    return fail(Kind::invalid, "line {}: there is more than one value after \"{}\"", line.number, line.option);
  }
  return {};
}

Result<std::string> read_all(int fd) {
  std::string text;
  std::array<char, 4096> buffer{};
  for (;;) {
    const ssize_t n = ::read(fd, buffer.data(), buffer.size());
    if (n == 0) {
      return text;
    }
    if (n < 0) {
      return sys_fail("read");
    }
    text.append(buffer.data(), static_cast<std::size_t>(n));
  }
}

Result<void> apply_line(Settings& settings, const ConfigLine& line) {
  bool negated = false;
  const Option* const option = find_option(line.option, negated);
  if (option == nullptr) {
    return fail(Kind::invalid, "there is no option \"{}\"", line.option);
  }
  if (option->argument == Argument::required && !line.has_value) {
    return fail(Kind::invalid, "option \"{}\" needs a value", line.option);
  }
  if (option->argument == Argument::none && line.has_value) {
    return fail(Kind::invalid, "option \"{}\" takes no value", line.option);
  }
  return apply_option(settings, *option, negated, line.value);
}

}  // namespace

Result<std::vector<ConfigLine>> parse_config(std::string_view text) {
  std::vector<ConfigLine> lines;
  int number = 0;
  while (!text.empty()) {
    const std::size_t newline = text.find('\n');
    std::string_view rest = text.substr(0, newline);
    text = newline == std::string_view::npos ? std::string_view{} : text.substr(newline + 1);
    ++number;
    const std::size_t start = rest.find_first_not_of(kBlanks);
    if (start == std::string_view::npos || rest[start] == '#') {
      continue;
    }
    rest.remove_prefix(start);
    const std::size_t end = std::min(rest.find_first_of(kBlanks), rest.size());
    ConfigLine line{.number = number, .option = std::string(rest.substr(0, end)), .value = {}};
    FERRY_CHECK(parse_value(rest.substr(end), line));
    lines.push_back(std::move(line));
  }
  return lines;
}

Result<void> apply_config_file(Settings& settings, const std::string& path) {
  const UniqueFd file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (!file) {
    return {};
  }
  FERRY_TRY(const std::string text, read_all(file.get()).during("reading {}", path));
  FERRY_TRY(const std::vector<ConfigLine> lines, parse_config(text).during("reading {}", path));
  for (const ConfigLine& line : lines) {
    FERRY_CHECK(apply_line(settings, line).during("{}, line {}", path, line.number));
  }
  return {};
}

Result<void> apply_config_files(Settings& settings) {
  // What a file itself says about further files comes too late to count, as in CRIU.
  const std::string named = settings.config_file;
  if (settings.default_config) {
    FERRY_CHECK(apply_config_file(settings, "/etc/criu/default.conf"));
    if (const char* const home = std::getenv("HOME"); home != nullptr) {
      FERRY_CHECK(apply_config_file(settings, fmt::format("{}/.criu/default.conf", home)));
    }
  }
  if (const char* const file = std::getenv("CRIU_CONFIG_FILE"); file != nullptr) {
    FERRY_CHECK(apply_config_file(settings, file));
  }
  if (!named.empty()) {
    FERRY_CHECK(apply_config_file(settings, named));
  }
  return {};
}

}  // namespace ferry::criu

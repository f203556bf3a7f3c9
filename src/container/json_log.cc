#include "container/json_log.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "container/json.h"

namespace ferry::container {
namespace {

constexpr std::size_t kChunk = 65536;

Result<std::size_t> read_at(int fd, char* data, std::size_t size, std::uint64_t offset) {
  for (;;) {
    const ssize_t got = ::pread(fd, data, size, static_cast<off_t>(offset));
    if (got >= 0) {
      return static_cast<std::size_t>(got);
    }
    if (errno != EINTR) {
      return sys_fail("pread(log)");
    }
  }
}

}  // namespace

Result<std::vector<std::string>> log_files(const std::string& log_path) {
  std::vector<std::string> out;
  const auto exists = [](const std::string& path) { return ::access(path.c_str(), F_OK) == 0; };
  for (int number = 1;; ++number) {
    const std::string plain = fmt::format("{}.{}", log_path, number);
    if (exists(plain)) {
      out.push_back(plain);
    } else if (exists(plain + ".gz")) {
      out.push_back(plain + ".gz");
    } else {
      break;
    }
  }
  std::reverse(out.begin(), out.end());
  if (exists(log_path)) {
    out.push_back(log_path);
  }
  return out;
}

Result<std::uint64_t> whole_log_length(int fd) {
  struct stat info {};
  if (::fstat(fd, &info) != 0) {
    return sys_fail("fstat(log)");
  }
  auto end = static_cast<std::uint64_t>(info.st_size);
  std::array<char, kChunk> buffer{};
  while (end > 0) {
    const std::size_t size = std::min<std::uint64_t>(end, buffer.size());
    FERRY_TRY(const std::size_t got, read_at(fd, buffer.data(), size, end - size));
    const std::string_view chunk(buffer.data(), got);
    if (const auto newline = chunk.rfind('\n'); newline != std::string_view::npos) {
      return end - size + newline + 1;
    }
    end -= size;
  }
  return 0U;
}

Result<void> append_log(int source_fd, std::uint64_t from, std::uint64_t to, int destination_fd) {
  std::array<char, kChunk> buffer{};
  while (from < to) {
    FERRY_TRY(const std::size_t got,
              read_at(source_fd, buffer.data(), std::min<std::uint64_t>(to - from, buffer.size()), from));
    if (got == 0) {
      return fail(Kind::corrupt, "the log ends at byte {}, but {} were expected", from, to);
    }
    // Only whole objects are written, so that dockerd's own lines never fall between two halves: a
    // write(2) with O_APPEND is one piece.
    std::size_t whole = got;
    if (from + got < to) {
      const auto newline = std::string_view(buffer.data(), got).rfind('\n');
      whole = newline == std::string_view::npos ? got : newline + 1;
    }
    std::size_t done = 0;
    while (done < whole) {
      const ssize_t written = ::write(destination_fd, buffer.data() + done, whole - done);
      if (written < 0 && errno != EINTR) {
        return sys_fail("write(log)");
      }
      done += static_cast<std::size_t>(std::max<ssize_t>(written, 0));
    }
    from += whole;
  }
  return {};
}

Result<LogLine> parse_log_line(std::string_view line) {
  FERRY_TRY(const Json object, parse_json(line, "a line of the log"));
  if (!json_at(object, "log").is_string()) {
    return fail(Kind::corrupt, "a line of the log has no text");
  }
  return LogLine{
      .text = json_text(object, "log"), .stream = json_text(object, "stream"), .time = json_text(object, "time")};
}

LogText log_text(std::string_view file_content) {
  LogText out;
  while (!file_content.empty()) {
    const auto newline = file_content.find('\n');
    if (newline == std::string_view::npos) {
      out.torn += file_content.size();
      break;
    }
    if (auto line = parse_log_line(file_content.substr(0, newline)); line) {
      out.text += line->text;
    } else {
      out.torn += newline + 1;
    }
    file_content.remove_prefix(newline + 1);
  }
  return out;
}

bool can_continue_log(std::string_view driver) { return driver == "json-file" || driver == "none"; }

}  // namespace ferry::container

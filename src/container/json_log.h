// The log files of Docker's json-file driver, continued on another host.
//
// A line of the file is one JSON object {"log":…,"stream":…,"time":…} and a newline.  A line of the
// program that was printed in pieces lies in several objects, of which only the last one's "log" ends
// in a newline; "docker logs" prints them without a gap.  So what matters when a log is continued is
// that no object is cut: everything up to the file's last newline is whole.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace ferry::container {

// The files of one log, oldest first: PATH.2 PATH.1 PATH (option max-file).  Those that Docker has
// compressed keep their ".gz".
Result<std::vector<std::string>> log_files(const std::string& log_path);

// Bytes up to and including the last newline of an open log; what follows is an object that dockerd is
// just writing.
Result<std::uint64_t> whole_log_length(int fd);

// Copies bytes [from, to) of a source log to the end of a destination that was opened with O_APPEND,
// as dockerd opens it, so that both may write.  Ends early only with an error.
Result<void> append_log(int source_fd, std::uint64_t from, std::uint64_t to, int destination_fd);

struct LogLine {
  std::string text;    // "log": with its newline, if it has one
  std::string stream;  // stdout, stderr
  std::string time;
};
// Errors: corrupt.
Result<LogLine> parse_log_line(std::string_view line);

// What a log file says, as "docker logs" would print it.  `torn` counts bytes after the last newline
// and lines that are no objects.
struct LogText {
  std::string text;
  std::uint64_t torn = 0;
};
LogText log_text(std::string_view file_content);

// True for the drivers whose logs can be continued ("json-file", and "none", which keeps nothing).
bool can_continue_log(std::string_view driver);

}  // namespace ferry::container

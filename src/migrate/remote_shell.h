// `ferry receive` on another host, by ssh or any command that is called like it.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"

namespace ferry::migrate {

// The words of a command as a shell would split them, with quotes and backslashes, without expansions.
Result<std::vector<std::string>> split_words(const std::string& command);

// Runs COMMAND DEST ARGUMENT…  What it prints on standard error is kept, for obituary(), and from
// show_errors() on it appears on ours, marked with DEST.
class RemoteShell {
 public:
  static Result<RemoteShell> start(const std::string& command, const std::string& destination,
                                   const std::vector<std::string>& arguments);
  RemoteShell(RemoteShell&& other) noexcept;
  RemoteShell& operator=(RemoteShell&&) = delete;
  // Closes what was not taken and waits for the end of the program; one that does not end is killed.
  ~RemoteShell();

  UniqueFd take_input() { return std::move(input_); }    // to write
  UniqueFd take_output() { return std::move(output_); }  // to read
  void show_errors();
  // Why it ended, for the user, once the connection has broken: "ssh: no such host (exit status 255)".
  std::string obituary();

 private:
  RemoteShell() = default;
  int wait(bool force);

  std::string name_;
  std::string destination_;
  pid_t pid_ = -1;
  int status_ = -1;
  UniqueFd input_;
  UniqueFd output_;
  struct Errors;
  std::shared_ptr<Errors> errors_;
  std::thread reader_;
};

}  // namespace ferry::migrate

// The process behind `ferry start --lazy`: it brings a started container its memory, and outlives the command.
#pragma once

#include <sys/types.h>

#include <string>

#include "base/error.h"

namespace ferry::program {

class LazyKeeper {
 public:
  // When this returns, a restore of the image set can find it at socket().
  static Result<LazyKeeper> start(const std::string& images_dir);
  LazyKeeper(LazyKeeper&& other) noexcept;
  LazyKeeper& operator=(LazyKeeper&&) = delete;
  // Ends it, unless it was told to go on by itself, or a restore has come to it.
  ~LazyKeeper();

  [[nodiscard]] const std::string& socket() const { return socket_; }
  // A tree runs on what it brings.
  void leave() { child_ = -1; }

 private:
  LazyKeeper(pid_t child, std::string socket) : child_(child), socket_(std::move(socket)) {}
  pid_t child_;
  std::string socket_;
};

}  // namespace ferry::program

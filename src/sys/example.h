// A process of our own that does something the kernel tells of in words that differ from version to version, and then
// sleeps: what is seen of it is what the words mean on this kernel.
#pragma once

#include <functional>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/ids.h"

namespace ferry::sys {

// It ends with the object, and with us.
class Example {
 public:
  // `become`: run in the new process (fork(2) of one thread of several: nothing in it may wait for a lock); false if it
  // could not.  Errors: os, with `what`.
  static Result<Example> start(const std::function<bool()>& become, std::string_view what);
  Example(Example&& other) noexcept : pid_(std::exchange(other.pid_, -1)) {}
  Example& operator=(Example&&) = delete;
  ~Example();
  [[nodiscard]] HostPid pid() const { return HostPid(pid_); }

  // In `become`: makes a child that sleeps beside it, and ends with it.
  static bool bear_child();
  [[nodiscard]] Result<HostPid> child() const;

 private:
  Example() = default;
  pid_t pid_ = -1;
};

}  // namespace ferry::sys

// What went wrong, on whom, and on the way to what.
//
// Every fallible function of ferry returns Result<T>.  The kernel's everyday answers ("the task is
// gone", "this kernel lacks it") are values here, because each caller has to decide what they mean,
// and because the same code runs where exceptions cannot cross (between clone and exec, in a batch
// inside another process, at the RPC boundary).
#pragma once

#include <fmt/core.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <tl/expected.hpp>
#include <utility>
#include <vector>

namespace ferry {

enum class Kind : std::uint8_t {
  gone,         // the task, file or peer does not exist any more
  unsupported,  // ferry or this kernel cannot carry it; said before anything is frozen
  denied,       // privileges are missing
  corrupt,      // an image, a message or a /proc text is not what it has to be
  invalid,      // the user asked for something that makes no sense
  os,           // any other answer of the kernel
};

struct Error {
  Kind kind = Kind::os;
  int os_errno = 0;                 // 0 if no system call failed
  std::string what;                 // one clause: "openat(/x): No such file or directory"
  std::vector<std::string> during;  // what we were doing, innermost first
  const char* file = "";
  int line = 0;

  // One sentence, outermost context first: "restoring files of pid 42: openat(/x): No such file…".
  [[nodiscard]] std::string message() const;
};

// errno mapped to a Kind: ESRCH and ENOENT are gone, EPERM and EACCES are denied, ENOSYS and
// EOPNOTSUPP are unsupported.
Kind kind_of_errno(int os_errno);

template <class T>
class [[nodiscard]] Result : public tl::expected<T, Error> {
 public:
  using Base = tl::expected<T, Error>;
  using Base::Base;
  Result(Base base) : Base(std::move(base)) {}

  // Adds context to an error; costs nothing on success.
  template <class... Args>
  Result during(fmt::format_string<Args...> text, Args&&... args) && {
    if (!this->has_value()) {
      this->error().during.push_back(fmt::format(text, std::forward<Args>(args)...));
    }
    return std::move(*this);
  }
};

// An error without errno.  `what` is a clause that names the subject.
template <class... Args>
struct fail {
  fail(Kind kind, fmt::format_string<Args...> text, Args&&... args, const char* file = __builtin_FILE(),
       int line = __builtin_LINE())
      : error{kind, 0, fmt::format(text, std::forward<Args>(args)...), {}, file, line} {}
  template <class T>
  operator Result<T>() && {
    return Result<T>(tl::unexpect, std::move(error));
  }
  Error error;
};
template <class... Args>
fail(Kind, fmt::format_string<Args...>, Args&&...) -> fail<Args...>;

// The error of a system call: saves errno at once.  `call` reads like the call that failed.
struct sys_fail {
  explicit sys_fail(std::string call, const char* file = __builtin_FILE(), int line = __builtin_LINE());
  sys_fail(int os_errno, std::string call, const char* file = __builtin_FILE(), int line = __builtin_LINE());
  template <class T>
  operator Result<T>() && {
    return Result<T>(tl::unexpect, std::move(error));
  }
  Error error;
};

}  // namespace ferry

#define FERRY_CONCAT_(a, b) a##b
#define FERRY_CONCAT(a, b) FERRY_CONCAT_(a, b)

// Returns the error of `expr` to the caller, or declares `decl` with its value.  Several statements:
// needs braces around it in an if.
#define FERRY_TRY(decl, ...)                                                                        \
  auto FERRY_CONCAT(ferry_try_, __LINE__) = (__VA_ARGS__);                                          \
  if (!FERRY_CONCAT(ferry_try_, __LINE__).has_value()) {                                            \
    return ::tl::unexpected<::ferry::Error>(std::move(FERRY_CONCAT(ferry_try_, __LINE__)).error()); \
  }                                                                                                 \
  decl = std::move(*FERRY_CONCAT(ferry_try_, __LINE__))

// The same for Result<void>, or for a value that is not wanted.
#define FERRY_CHECK(...)                                                        \
  do {                                                                          \
    if (auto ferry_check_ = (__VA_ARGS__); !ferry_check_.has_value()) {         \
      return ::tl::unexpected<::ferry::Error>(std::move(ferry_check_).error()); \
    }                                                                           \
  } while (false)

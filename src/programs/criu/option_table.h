// The one table of options: names, letters, arguments, and what each does to the settings or why it
// is refused.  Command line and configuration files are both read by it.
#pragma once

#include <span>
#include <string_view>

#include "base/error.h"
#include "programs/criu/settings.h"

namespace ferry::criu {

enum class Argument { none, required, optional };

struct Value {
  std::string_view option;  // its name, for messages
  std::string_view text;    // empty without an argument
  bool on = true;           // false: the --no-NAME form
};

struct Option {
  const char* name;
  char letter;  // 0: none
  Argument argument;
  bool negatable;                                  // has a --no-NAME form
  Result<void> (*apply)(Settings&, const Value&);  // null: refused
  const char* refusal;                             // why, as the end of a sentence
};

std::span<const Option> options();

// Null if there is no such option.  `negated` is set if `name` is the --no- form of one that has it.
const Option* find_option(std::string_view name, bool& negated);

// Errors: unsupported for what ferry does not do, by name; invalid for a value that makes no sense.
// Saying no to what is not done anyway is no error.
Result<void> apply_option(Settings& settings, const Option& option, bool negated, std::string_view text);

// The sentence for an option, request or command that is not done; `name` as the user wrote it.
Error not_supported(std::string_view name, std::string_view reason, const char* file = __builtin_FILE(),
                    int line = __builtin_LINE());

}  // namespace ferry::criu

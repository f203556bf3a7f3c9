// Bytes under way in a pair of terminals.
#pragma once

#include <string>
#include <string_view>

#include "base/error.h"

namespace ferry::state::tty {

// Everything that was written to the other side and not read yet, a line that is not complete included.
// A terminal has no way to look without taking, so what is taken is put back by write_unchanged().
// `master`: whether `fd` is the master.
Result<std::string> take_data(int fd, bool master, std::string_view subject);

// Writes to one side so that the other, `reader`, finds just these bytes: nothing is echoed or edited.
// Returns when they have arrived.  `modes`: a descriptor of either side, for the settings meanwhile.
Result<void> write_unchanged(int writer, int reader, int modes, const std::string& bytes, std::string_view subject);

}  // namespace ferry::state::tty

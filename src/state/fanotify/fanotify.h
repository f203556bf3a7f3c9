// Groups of fanotify(7) with their marks.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "state/file_kind.h"

namespace ferry::state {

std::unique_ptr<FileKind> make_fanotify_kind();

namespace fanotify {

// "…KEY:HEX…" of a line of fdinfo (proc_pid_fdinfo(5)).
std::optional<std::uint32_t> hex_field(std::string_view text, std::string_view key);

}  // namespace fanotify
}  // namespace ferry::state

// Which build of a program or library a file is, as its linker has written it down.
#pragma once

#include <cstdint>
#include <vector>

#include "base/error.h"

namespace ferry::state::files {

// The build-id of the ELF file behind `fd` (O_PATH will do), 4 bytes to a word in the order of memory, padded with
// zeros, as RegFileEntry has it.  Empty if it has none, or is no 64-bit ELF file.  Source: elf(5), PT_NOTE and
// NT_GNU_BUILD_ID.  The file is opened for reading: not to be asked of one that may have a lease (fcntl(2)), which
// that would break.
Result<std::vector<std::uint32_t>> read_build_id(int fd);

}  // namespace ferry::state::files

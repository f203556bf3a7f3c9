// eBPF maps: bpf(2).  Arrays and hashes, whose content the system call can read and write as a whole.
#pragma once

#include <memory>

#include "state/file_kind.h"

namespace ferry::state {

std::unique_ptr<FileKind> make_bpf_map_kind();

}  // namespace ferry::state

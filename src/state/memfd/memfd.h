// Memory files (memfd_create(2)) and anonymous shared memory, which the kernel makes of the same thing.
//
// An inode is kept once, with its content in pagemap-shmem-SHMID; descriptors and mappings refer to it
// through MEMFD entries of files.img.
#pragma once

#include <memory>
#include <string>

#include "state/file_kind.h"

namespace ferry::state {

std::unique_ptr<FileKind> make_memfd_kind();

namespace memfd {

// "/memfd:NAME (deleted)"; "/dev/zero (deleted)" or "/anon_hugepage (deleted)": anonymous shared memory.
bool is_memfd(std::string_view link);

// A MEMFD entry for the file of a mapping; the same one for all mappings of one file.  Its id is the
// shmid of the mapping.
Result<std::uint32_t> add_mapping(DumpContext& context, DumpTask& task, const sys::Mapping& mapping);

// The size of the pages of a file on hugetlbfs, as memfd_create(2) and mmap(2) take it; 0 if it is not on one.
Result<std::uint32_t> huge_page_flag(int fd);

}  // namespace memfd
}  // namespace ferry::state

#include "state/files/mapped_modes.h"

#include <fcntl.h>

#include <map>
#include <set>

#include "image/proto/files.pb.h"
#include "image/proto/mm.pb.h"

namespace ferry::state {

void widen_mapped_files(image::Set& set) {
  using image::Type;
  std::set<std::uint64_t> in_tables;
  for (const image::Name name : set.names(Type::fdinfo)) {
    for (const auto* fd : set.list<pb::FdinfoEntry>(name)) {
      in_tables.insert(fd->id());
    }
  }
  std::set<std::uint64_t> written;
  for (const image::Name name : set.names(Type::mm)) {
    for (const auto* mm : set.list<pb::MmEntry>(name)) {
      for (const pb::VmaEntry& vma : mm->vmas()) {
        if ((vma.fdflags() & O_ACCMODE) == O_RDWR && !in_tables.contains(vma.shmid())) {
          written.insert(vma.shmid());
        }
      }
    }
  }
  for (const image::Entry& entry : set.entries({Type::files, 0})) {
    auto& file = static_cast<pb::FileEntry&>(*entry.message);
    if (!written.contains(file.id())) {
      continue;
    }
    if (file.has_reg() && (file.reg().flags() & O_ACCMODE) == O_RDONLY) {
      file.mutable_reg()->set_flags(file.reg().flags() | O_RDWR);
    } else if (file.has_memfd() && (file.memfd().flags() & O_ACCMODE) == O_RDONLY) {
      file.mutable_memfd()->set_flags(file.memfd().flags() | O_RDWR);
    }
  }
}

}  // namespace ferry::state

#include "sys/packet_look.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <string>

#include "sys/bpf_iterator.h"
#include "sys/btf.h"
#include "sys/file.h"

namespace ferry::sys {
namespace {

// As the program emits them for each file.
struct Words {
  std::uint64_t inode = 0, mode = 0, rx_frame = 0, rx_block = 0, tx_frame = 0;
};
constexpr std::size_t kWords = sizeof(Words) / 8;
constexpr std::size_t kPointer = kWords, kOwn = 1;  // a word of the program's own, behind what it emits

constexpr std::size_t word(std::size_t offset) { return offset / 8; }

}  // namespace

Result<PacketLook> PacketLook::open() {
  FERRY_TRY(const Btf btf, Btf::of_kernel());
  using Program = IteratorProgram;
  constexpr int kFileOfContext = 3;  // behind what is common to all, the task, and the descriptor
  FERRY_TRY(Program program, Program::begin(btf, kFileOfContext, kWords, kOwn));
  // Follows a pointer that is a field of what `from` holds.
  const auto follow = [&](std::uint8_t from, const char* structure, const char* name) -> Result<void> {
    FERRY_TRY(const std::uint32_t type, btf.structure(structure));
    FERRY_TRY(const Btf::Field field, btf.field(type, name));
    program.copy(kPointer, from, field.offset, 8);
    program.load(Program::kSpare, kPointer);
    return {};
  };
  const auto emit = [&](std::size_t to, const char* structure, const char* name) -> Result<void> {
    FERRY_TRY(const std::uint32_t type, btf.structure(structure));
    FERRY_TRY(const Btf::Field field, btf.field(type, name));
    if (field.size == 0 || field.size > 8) {
      return fail(Kind::unsupported, "the field {} of this kernel's {} has {} bytes", name, structure, field.size);
    }
    program.copy(word(to), Program::kSpare, field.offset, field.size);
    return {};
  };
  FERRY_CHECK(follow(Program::kObject, "file", "f_inode"));
  FERRY_CHECK(emit(offsetof(Words, inode), "inode", "i_ino"));
  FERRY_CHECK(emit(offsetof(Words, mode), "inode", "i_mode"));
  FERRY_CHECK(follow(Program::kObject, "file", "private_data"));
  FERRY_CHECK(follow(Program::kSpare, "socket", "sk"));
  // A struct packet_sock begins with its struct sock (net/packet/internal.h).
  FERRY_CHECK(emit(offsetof(Words, rx_frame), "packet_sock", "rx_ring.head"));
  FERRY_CHECK(emit(offsetof(Words, rx_block), "packet_sock", "rx_ring.prb_bdqc.kactive_blk_num"));
  FERRY_CHECK(emit(offsetof(Words, tx_frame), "packet_sock", "tx_ring.head"));
  FERRY_TRY(UniqueFd loaded, program.finish(btf, "bpf_iter_task_file"));
  return PacketLook(std::move(loaded));
}

Result<PacketPositions> PacketLook::at(int socket) const {
  FERRY_TRY(const struct stat st, stat_fd(socket, "a packet socket"));
  FERRY_TRY(Iteration iteration, Iteration::prepare(program_.get(), Iteration::Of::files, HostPid(::getpid())));
  for (;;) {
    FERRY_TRY(const std::string part, iteration.next());
    if (part.empty()) {
      return fail(Kind::unsupported, "an iterator over files does not show a packet socket of ours");
    }
    for (std::size_t i = 0; i + sizeof(Words) <= part.size(); i += sizeof(Words)) {
      Words w;
      std::memcpy(&w, part.data() + i, sizeof w);
      // An open socket is on the one file system of sockets, so its inode number names it.
      if (w.inode == st.st_ino && S_ISSOCK(static_cast<mode_t>(w.mode))) {
        return PacketPositions{static_cast<std::uint32_t>(w.rx_frame), static_cast<std::uint32_t>(w.rx_block),
                               static_cast<std::uint32_t>(w.tx_frame)};
      }
    }
  }
}

}  // namespace ferry::sys

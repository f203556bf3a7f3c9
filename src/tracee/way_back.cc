#include "tracee/way_back.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "base/log.h"
#include "sys/file.h"
#include "sys/memory.h"
#include "tracee/sigframe.h"

namespace ferry::tracee {
namespace {

constexpr std::uint64_t kRedZone = 128;  // below the stack pointer, System V ABI for x86-64, 3.2.2
constexpr std::uint64_t kFrameAlignment = 64;
constexpr std::size_t kStep = 1U << 20;

template <std::size_t N>
using Code = std::array<unsigned char, N>;
constexpr Code<3> kCall{0x0f, 0x05, 0xc3};
// As compilers and assemblers write it: mov to eax, and to rax with a sign extended.
constexpr Code<7> kShort{0xb8, 0x0f, 0x00, 0x00, 0x00, 0x0f, 0x05};
constexpr Code<9> kLong{0x48, 0xc7, 0xc0, 0x0f, 0x00, 0x00, 0x00, 0x0f, 0x05};

template <std::size_t N>
void find(std::span<const std::byte> text, std::uint64_t base, const Code<N>& code, std::uint64_t& at) {
  if (at == 0) {
    if (const void* found = ::memmem(text.data(), text.size(), code.data(), code.size()); found != nullptr) {
      at = base + static_cast<std::uint64_t>(static_cast<const std::byte*>(found) - text.data());
    }
  }
}

template <std::size_t N>
bool is_at(std::span<const std::byte> text, const Code<N>& code) {
  return text.size() >= N && std::memcmp(text.data(), code.data(), N) == 0;
}

bool may_have_it(const sys::Mapping& m) {
  return (m.prot & PROT_EXEC) != 0 && (m.prot & PROT_READ) != 0 && m.inode != 0;
}

// No mapping starts with either piece, since an ELF header or a padding is there: 0 says that it is not in there.
WayBack search(HostPid pid, const sys::Mapping& m) {
  WayBack out;
  std::vector<std::byte> text;
  for (std::uint64_t at = m.start; at < m.end && (out.call == 0 || out.from_signal == 0);) {
    text.resize(static_cast<std::size_t>(std::min<std::uint64_t>(m.end - at, kStep)));
    if (!sys::read_memory(pid, at, text).has_value()) {
      break;
    }
    find(text, at - m.start, kCall, out.call);
    find(text, at - m.start, kLong, out.from_signal);
    find(text, at - m.start, kShort, out.from_signal);
    if (text.size() < kStep) {
      break;
    }
    at += text.size() - kLong.size();  // what lies across two steps
  }
  return out;
}

}  // namespace

void WaysBack::learn(HostPid pid) {
  const auto text = sys::read_file(fmt::format("/proc/{}/maps", pid));
  const auto mappings =
      text.has_value() ? sys::parse_maps(*text) : Result<std::vector<sys::Mapping>>(tl::unexpect, text.error());
  if (!mappings.has_value()) {
    return;
  }
  for (const sys::Mapping& m : *mappings) {
    const File file{m.dev, m.inode, m.offset};
    if (may_have_it(m) && !files_.contains(file)) {
      files_.emplace(file, search(pid, m));
    }
  }
}

std::optional<WayBack> WaysBack::of(HostPid pid, const std::vector<sys::Mapping>& mappings) const {
  WayBack out;
  for (const sys::Mapping& m : mappings) {
    if (!may_have_it(m)) {
      continue;
    }
    const auto known = files_.find({m.dev, m.inode, m.offset});
    if (known == files_.end()) {
      continue;
    }
    const auto take = [&](std::uint64_t offset, std::uint64_t& at) {
      if (at == 0 && offset != 0 && m.start + offset + kLong.size() <= m.end) {
        at = m.start + offset;
      }
    };
    take(known->second.call, out.call);
    take(known->second.from_signal, out.from_signal);
    if (out.call != 0 && out.from_signal != 0) {
      break;
    }
  }
  if (out.call == 0 || out.from_signal == 0) {
    return std::nullopt;
  }
  // A private mapping may have been written to (text relocations, a debugger's breakpoints).
  std::array<std::byte, kCall.size()> call;
  std::array<std::byte, kLong.size()> from_signal;
  if (!sys::read_memory(pid, out.call, call).has_value() ||
      !sys::read_memory(pid, out.from_signal, from_signal).has_value() || !is_at(std::span(call), kCall) ||
      (!is_at(std::span(from_signal), kLong) && !is_at(std::span(from_signal), kShort))) {
    return std::nullopt;
  }
  return out;
}

Result<void> StackFrame::place(HostPid pid, const WayBack& way, const Registers& registers, std::uint64_t mask,
                               std::span<const std::byte> extended_state) {
  // Twice: how long it is does not depend on where it stands.
  const std::size_t size = make_signal_frame(0, registers, mask, extended_state).bytes.size();
  const std::uint64_t address = (registers.rsp - kRedZone - size) & ~(kFrameAlignment - 1);
  SignalFrame frame = make_signal_frame(address, registers, mask, extended_state);
  const std::uint64_t stack_pointer = frame.stack_pointer - sizeof way.from_signal;  // where `ret` looks
  std::memcpy(frame.bytes.data() + (stack_pointer - address), &way.from_signal, sizeof way.from_signal);
  std::vector<std::byte> before(size);
  FERRY_CHECK(sys::read_memory(pid, address, before));
  // From here on give_back() has to undo even half of it.
  pid_ = pid;
  address_ = address;
  before_ = std::move(before);
  if (auto written = sys::write_memory(pid, address, frame.bytes); !written) {
    give_back();
    return written;
  }
  stack_pointer_ = stack_pointer;
  return {};
}

void StackFrame::give_back() {
  if (!before_.empty()) {
    (void)sys::write_memory(pid_, address_, before_);
    before_.clear();
    stack_pointer_ = 0;
  }
}

}  // namespace ferry::tracee

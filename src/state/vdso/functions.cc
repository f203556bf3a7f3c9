#include <elf.h>
#include <sys/auxv.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <optional>

#include "state/vdso/vdso.h"

namespace ferry::state::vdso {
namespace {

using Bytes = std::span<const std::byte>;

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kMostSymbols = 1024;
constexpr std::uint64_t kMostNameLength = 256;

template <class T>
std::optional<T> at(Bytes content, std::uint64_t offset) {
  if (offset > content.size() || content.size() - offset < sizeof(T)) {
    return std::nullopt;
  }
  T out;
  std::memcpy(&out, content.data() + offset, sizeof out);
  return out;
}

std::vector<Elf64_Phdr> segments(Bytes content) {
  const auto header = at<Elf64_Ehdr>(content, 0);
  std::vector<Elf64_Phdr> out;
  if (!header || std::memcmp(header->e_ident, ELFMAG, SELFMAG) != 0 || header->e_ident[EI_CLASS] != ELFCLASS64 ||
      header->e_phentsize != sizeof(Elf64_Phdr)) {
    return out;
  }
  for (std::uint64_t i = 0; i < header->e_phnum; ++i) {
    if (const auto segment = at<Elf64_Phdr>(content, header->e_phoff + i * sizeof(Elf64_Phdr)); segment) {
      out.push_back(*segment);
    }
  }
  return out;
}

// It is linked to lie at address 0: addresses in it are offsets.
std::map<std::int64_t, std::uint64_t> dynamic(Bytes content) {
  std::map<std::int64_t, std::uint64_t> out;
  for (const Elf64_Phdr& segment : segments(content)) {
    if (segment.p_type != PT_DYNAMIC) {
      continue;
    }
    for (std::uint64_t offset = segment.p_vaddr; offset - segment.p_vaddr < segment.p_memsz;
         offset += sizeof(Elf64_Dyn)) {
      const auto entry = at<Elf64_Dyn>(content, offset);
      if (!entry || entry->d_tag == DT_NULL) {
        break;
      }
      out.emplace(entry->d_tag, entry->d_un.d_val);
    }
  }
  return out;
}

// DT_GNU_HASH does not say how many symbols there are: the last one is the end of the chain that begins last.
std::optional<std::uint64_t> count_by_gnu_hash(Bytes content, std::uint64_t table) {
  struct Head {
    std::uint32_t buckets, first, bloom_words, bloom_shift;
  };
  const auto head = at<Head>(content, table);
  if (!head || head->buckets > kMostSymbols) {
    return std::nullopt;
  }
  const std::uint64_t buckets = table + sizeof(Head) + std::uint64_t{head->bloom_words} * sizeof(Elf64_Addr);
  std::uint32_t last = 0;
  for (std::uint64_t i = 0; i < head->buckets; ++i) {
    const auto begin = at<std::uint32_t>(content, buckets + i * sizeof(std::uint32_t));
    if (!begin) {
      return std::nullopt;
    }
    last = std::max(last, *begin);
  }
  if (last < head->first) {
    return head->first;
  }
  const std::uint64_t chains = buckets + std::uint64_t{head->buckets} * sizeof(std::uint32_t);
  for (; last < kMostSymbols; ++last) {
    const auto link = at<std::uint32_t>(content, chains + std::uint64_t{last - head->first} * sizeof(std::uint32_t));
    if (!link) {
      return std::nullopt;
    }
    if ((*link & 1U) != 0) {
      return last + 1;
    }
  }
  return std::nullopt;
}

std::optional<std::uint64_t> count_symbols(Bytes content, const std::map<std::int64_t, std::uint64_t>& tags) {
  if (const auto table = tags.find(DT_HASH); table != tags.end()) {
    struct Head {
      std::uint32_t buckets, chains;
    };
    const auto head = at<Head>(content, table->second);
    return head ? std::optional<std::uint64_t>(head->chains) : std::nullopt;
  }
  const auto table = tags.find(DT_GNU_HASH);
  return table == tags.end() ? std::nullopt : count_by_gnu_hash(content, table->second);
}

std::optional<std::string> string_at(Bytes content, std::uint64_t offset) {
  if (offset >= content.size()) {
    return std::nullopt;
  }
  const auto* begin = reinterpret_cast<const char*>(content.data()) + offset;
  const std::size_t most = std::min<std::uint64_t>(content.size() - offset, kMostNameLength);
  const std::size_t length = ::strnlen(begin, most);
  return length == most ? std::nullopt : std::optional(std::string(begin, length));
}

std::string build_id_in(Bytes notes) {
  const auto padded = [](std::uint64_t size) { return (size + 3) / 4 * 4; };
  for (std::uint64_t offset = 0;;) {
    const auto note = at<Elf64_Nhdr>(notes, offset);
    if (!note) {
      return {};
    }
    const std::uint64_t name = offset + sizeof *note;
    const std::uint64_t content = name + padded(note->n_namesz);
    if (content > notes.size() || notes.size() - content < note->n_descsz) {
      return {};
    }
    if (note->n_type == NT_GNU_BUILD_ID && note->n_namesz == sizeof ELF_NOTE_GNU &&
        std::memcmp(notes.data() + name, ELF_NOTE_GNU, sizeof ELF_NOTE_GNU) == 0) {
      return {reinterpret_cast<const char*>(notes.data()) + content, note->n_descsz};
    }
    offset = content + padded(note->n_descsz);
  }
}

}  // namespace

std::span<const std::byte> own() {
  const auto* begin = reinterpret_cast<const std::byte*>(::getauxval(AT_SYSINFO_EHDR));
  if (begin == nullptr) {
    return {};
  }
  // The headers are in the first page; how much is mapped is what the segments need.
  std::uint64_t end = kPage;
  for (const Elf64_Phdr& segment : segments({begin, kPage})) {
    if (segment.p_type == PT_LOAD) {
      end = std::max(end, segment.p_vaddr + segment.p_memsz);
    }
  }
  return {begin, (end + kPage - 1) / kPage * kPage};
}

std::string build_of(std::span<const std::byte> content) {
  for (const Elf64_Phdr& segment : segments(content)) {
    if (segment.p_type != PT_NOTE || segment.p_vaddr > content.size() ||
        content.size() - segment.p_vaddr < segment.p_memsz) {
      continue;
    }
    if (std::string id = build_id_in(content.subspan(segment.p_vaddr, segment.p_memsz)); !id.empty()) {
      return id;
    }
  }
  return {reinterpret_cast<const char*>(content.data()), content.size()};
}

Result<std::vector<Function>> functions(std::span<const std::byte> content) {
  const auto tags = dynamic(content);
  const auto symbols = tags.find(DT_SYMTAB);
  const auto strings = tags.find(DT_STRTAB);
  const auto count = count_symbols(content, tags);
  if (symbols == tags.end() || strings == tags.end() || !count || *count > kMostSymbols) {
    return fail(Kind::corrupt, "a vDSO has no table of symbols");
  }
  std::vector<Function> out;
  for (std::uint64_t i = 1; i < *count; ++i) {
    const auto symbol = at<Elf64_Sym>(content, symbols->second + i * sizeof(Elf64_Sym));
    if (!symbol) {
      return fail(Kind::corrupt, "a vDSO ends within its symbols");
    }
    if (ELF64_ST_TYPE(symbol->st_info) != STT_FUNC || symbol->st_shndx == SHN_UNDEF) {
      continue;
    }
    auto name = string_at(content, strings->second + symbol->st_name);
    if (!name || symbol->st_value > content.size() || content.size() - symbol->st_value < symbol->st_size) {
      return fail(Kind::corrupt, "a vDSO has a function that is not in it");
    }
    out.push_back({std::move(*name), symbol->st_value, symbol->st_size});
  }
  return out;
}

}  // namespace ferry::state::vdso

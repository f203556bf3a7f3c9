#include "sys/btf.h"

#include <fcntl.h>
#include <linux/btf.h>

#include <algorithm>
#include <cstring>

#include "sys/file.h"

namespace ferry::sys {
namespace {

constexpr int kMaxDepth = 32;  // of types behind each other: a malformed blob must not send us round in circles
constexpr std::uint32_t kKinds = 32;
constexpr std::uint32_t kDeclTag = 17, kTypeTag = 18, kEnum64 = 19;  // BTF_KIND_*, since Linux 5.16 and 6.0
constexpr std::uint32_t kPointerSize = 8;

std::uint32_t kind_of(std::uint32_t info) { return info >> 24 & (kKinds - 1); }
std::uint32_t length_of(std::uint32_t info) { return info & 0xffff; }
bool has_bitfields(std::uint32_t info) { return (info >> 31) != 0; }

// What follows the head of a type (btf.rst, "Type Encoding").
std::size_t tail_of(std::uint32_t info) {
  switch (kind_of(info)) {
    case BTF_KIND_INT:
    case BTF_KIND_VAR:
    case kDeclTag:
      return 4;
    case BTF_KIND_ARRAY:
      return sizeof(btf_array);
    case BTF_KIND_STRUCT:
    case BTF_KIND_UNION:
      return length_of(info) * sizeof(btf_member);
    case BTF_KIND_ENUM:
      return length_of(info) * sizeof(btf_enum);
    case BTF_KIND_FUNC_PROTO:
      return length_of(info) * sizeof(btf_param);
    case BTF_KIND_DATASEC:
      return length_of(info) * sizeof(btf_var_secinfo);
    case kEnum64:
      return length_of(info) * std::size_t{12};
    default:
      return 0;
  }
}

template <class T>
T load(const std::string& bytes, std::size_t at) {
  T out{};
  if (at + sizeof out <= bytes.size()) {
    std::memcpy(&out, bytes.data() + at, sizeof out);
  }
  return out;
}

}  // namespace

Result<Btf> Btf::of_kernel() {
  constexpr const char* kPath = "/sys/kernel/btf/vmlinux";
  FERRY_TRY(const UniqueFd fd, open(kPath, O_RDONLY));
  FERRY_TRY(const struct stat st, stat_fd(fd.get(), kPath));
  std::string bytes(static_cast<std::size_t>(st.st_size), '\0');
  FERRY_CHECK(read_exactly(fd.get(), bytes.data(), bytes.size(), kPath));
  return parse(std::move(bytes));
}

Result<Btf> Btf::parse(std::string bytes) {
  Btf out;
  out.bytes_ = std::move(bytes);
  const auto header = load<btf_header>(out.bytes_, 0);
  const std::size_t size = out.bytes_.size();
  out.types_ = std::size_t{header.hdr_len} + header.type_off;
  out.strings_ = std::size_t{header.hdr_len} + header.str_off;
  out.strings_size_ = header.str_len;
  const std::size_t end = out.types_ + header.type_len;
  if (header.magic != BTF_MAGIC || end > size || out.strings_ + out.strings_size_ > size || out.strings_size_ == 0 ||
      out.bytes_[out.strings_ + out.strings_size_ - 1] != '\0') {
    return fail(Kind::corrupt, "the kernel's type information of {} bytes is not well-formed", size);
  }
  out.at_.reserve(header.type_len / 20);
  out.at_.push_back(0);  // type 0 is void
  for (std::size_t at = out.types_; at < end;) {
    out.at_.push_back(static_cast<std::uint32_t>(at));
    at += sizeof(btf_type) + tail_of(load<btf_type>(out.bytes_, at).info);
  }
  return out;
}

Btf::Head Btf::head(std::uint32_t type) const {
  if (type == 0 || type >= at_.size()) {
    return {};
  }
  const auto found = load<btf_type>(bytes_, at_[type]);
  return {found.name_off, found.info, found.size};
}

std::string_view Btf::string(std::uint32_t offset) const {
  return offset < strings_size_ ? bytes_.data() + strings_ + offset : std::string_view();
}

std::uint32_t Btf::find(std::uint32_t kind, std::string_view name) const {
  for (std::uint32_t type = 1; type < at_.size(); ++type) {
    const Head h = head(type);
    if (kind_of(h.info) == kind && string(h.name) == name) {
      return type;
    }
  }
  return 0;
}

std::uint32_t Btf::plain(std::uint32_t type) const {
  for (int depth = 0; depth < kMaxDepth; ++depth) {
    const Head h = head(type);
    switch (kind_of(h.info)) {
      case BTF_KIND_TYPEDEF:
      case BTF_KIND_CONST:
      case BTF_KIND_VOLATILE:
      case BTF_KIND_RESTRICT:
      case kTypeTag:
        type = h.size_or_type;
        break;
      default:
        return type;
    }
  }
  return 0;
}

std::uint32_t Btf::size_of(std::uint32_t type, int depth) const {
  type = plain(type);
  const Head h = head(type);
  switch (kind_of(h.info)) {
    case BTF_KIND_PTR:
      return kPointerSize;
    case BTF_KIND_ARRAY: {
      const auto array = load<btf_array>(bytes_, at_[type] + sizeof(btf_type));
      return depth < kMaxDepth ? array.nelems * size_of(array.type, depth + 1) : 0;
    }
    case BTF_KIND_INT:
    case BTF_KIND_STRUCT:
    case BTF_KIND_UNION:
    case BTF_KIND_ENUM:
    case kEnum64:
      return h.size_or_type;
    default:
      return 0;
  }
}

bool Btf::member(std::uint32_t structure, std::string_view name, int depth, Place& out) const {
  structure = plain(structure);
  const Head h = head(structure);
  if (depth == kMaxDepth || (kind_of(h.info) != BTF_KIND_STRUCT && kind_of(h.info) != BTF_KIND_UNION)) {
    return false;
  }
  for (std::uint32_t i = 0; i < length_of(h.info); ++i) {
    const auto m = load<btf_member>(bytes_, at_[structure] + sizeof(btf_type) + i * sizeof(btf_member));
    const std::uint32_t bits = has_bitfields(h.info) ? m.offset & 0xffffff : m.offset;
    const std::string_view its = string(m.name_off);
    if (its == name && !(has_bitfields(h.info) && m.offset >> 24 != 0)) {
      out = {bits / 8, m.type};
      return true;
    }
    if (its.empty() && member(m.type, name, depth + 1, out)) {
      out.offset += bits / 8;
      return true;
    }
  }
  return false;
}

Result<Btf::Field> Btf::field(std::uint32_t structure, std::string_view path) const {
  Place place{0, structure};
  for (std::string_view rest = path; !rest.empty();) {
    const std::size_t dot = std::min(rest.find('.'), rest.size());
    Place next;
    if (!member(place.type, rest.substr(0, dot), 0, next)) {
      return fail(Kind::unsupported, "this kernel has no field {} in its {}", path, string(head(structure).name));
    }
    place = {place.offset + next.offset, next.type};
    rest.remove_prefix(std::min(dot + 1, rest.size()));
  }
  return Field{place.offset, size_of(place.type, 0)};
}

Result<std::uint32_t> Btf::structure(std::string_view name) const {
  const std::uint32_t type = find(BTF_KIND_STRUCT, name);
  if (type == 0) {
    return fail(Kind::unsupported, "this kernel has no structure {}", name);
  }
  return type;
}

Result<std::uint32_t> Btf::function(std::string_view name) const {
  const std::uint32_t type = find(BTF_KIND_FUNC, name);
  if (type == 0) {
    return fail(Kind::unsupported, "this kernel has no function {}", name);
  }
  return type;
}

}  // namespace ferry::sys

// Image sets as one byte string; docs/images.md describes the framing.
#include <zlib.h>

#include <limits>

#include "image/kinds.h"
#include "image/set.h"
#include "image/version.h"

namespace ferry::image {
namespace {

constexpr std::string_view kHeader = "ferry image set\n";
constexpr std::uint32_t kStreamVersion = 1;
constexpr std::size_t kMaxNameBytes = 255;  // NAME_MAX

template <class N>
void put(std::string& out, N value) {
  for (std::size_t i = 0; i < sizeof value; ++i) {
    out.push_back(static_cast<char>(value >> (8 * i) & 0xff));
  }
}

std::uint32_t checksum(std::string_view bytes) {
  return static_cast<std::uint32_t>(::crc32_z(0, reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size()));
}

class Stream {
 public:
  explicit Stream(std::string_view bytes) : bytes_(bytes) {}
  [[nodiscard]] std::size_t offset() const { return offset_; }
  [[nodiscard]] bool done() const { return offset_ == bytes_.size(); }
  [[nodiscard]] std::string_view since(std::size_t start) const { return bytes_.substr(start, offset_ - start); }

  Result<std::string_view> take(std::uint64_t size) {
    if (size > bytes_.size() - offset_) {
      return fail(Kind::corrupt, "image stream, offset {}: {} bytes announced, {} are left", offset_, size,
                  bytes_.size() - offset_);
    }
    const auto out = bytes_.substr(offset_, static_cast<std::size_t>(size));
    offset_ += out.size();
    return out;
  }
  template <class N>
  Result<N> number() {
    FERRY_TRY(const auto text, take(sizeof(N)));
    N value = 0;
    for (std::size_t i = 0; i < sizeof(N); ++i) {
      value = static_cast<N>(value | static_cast<N>(static_cast<N>(static_cast<unsigned char>(text[i])) << (8 * i)));
    }
    return value;
  }

 private:
  std::string_view bytes_;
  std::size_t offset_ = 0;
};

void put_record(std::string& out, std::string_view name, std::string_view content) {
  const auto start = out.size();
  put(out, static_cast<std::uint16_t>(name.size()));
  out += name;
  put(out, static_cast<std::uint64_t>(content.size()));
  out += content;
  put(out, checksum(std::string_view(out).substr(start)));
}

struct Record {
  std::string_view name;  // empty: the last one
  std::string_view content;
};

Result<Record> take_record(Stream& in) {
  const auto start = in.offset();
  FERRY_TRY(const auto name_size, in.number<std::uint16_t>());
  if (name_size > kMaxNameBytes) {
    return fail(Kind::corrupt, "image stream, offset {}: a name of {} bytes", start, name_size);
  }
  FERRY_TRY(const auto name, in.take(name_size));
  FERRY_TRY(const auto size, in.number<std::uint64_t>());
  FERRY_TRY(const auto content, in.take(size));
  const auto sum = checksum(in.since(start));
  FERRY_TRY(const auto wanted, in.number<std::uint32_t>());
  if (sum != wanted) {
    return fail(Kind::corrupt, "image stream, offset {}: checksum {:08x}, not {:08x}", start, sum, wanted);
  }
  return Record{name, content};
}

}  // namespace

Result<std::string> encode(const Set& set) {
  FERRY_CHECK(check_version(set, Accept::pre_dump));
  std::string out(kHeader);
  put(out, kStreamVersion);
  // The inventory sorts first, so the reader knows the version before any other image.
  static_assert(static_cast<int>(Type::inventory) == 0);
  std::uint64_t count = 0;
  for (const Name name : set.names()) {
    FERRY_TRY(const auto bytes, encode_file(set, name));
    put_record(out, file_name(name), bytes);
    ++count;
  }
  std::string total;
  put(total, count);
  put_record(out, "", total);
  return out;
}

Result<Set> decode(std::string_view bytes, Accept accept) {
  Stream in(bytes);
  FERRY_TRY(const auto header, in.take(kHeader.size()));
  if (header != kHeader) {
    return fail(Kind::corrupt, "not an image stream");
  }
  FERRY_TRY(const auto stream_version, in.number<std::uint32_t>());
  if (stream_version != kStreamVersion) {
    return fail(Kind::unsupported, "image stream version {} is not one that ferry reads ({} is)", stream_version,
                kStreamVersion);
  }
  Set set;
  std::uint32_t version = 2;
  for (std::uint64_t count = 0;; ++count) {
    const auto at = in.offset();
    FERRY_TRY(const auto record, take_record(in));
    if (record.name.empty()) {
      Stream tail(record.content);
      FERRY_TRY(const auto total, tail.number<std::uint64_t>());
      if (total != count || !tail.done() || !in.done() || count == 0) {
        return fail(Kind::corrupt, "image stream, offset {}: {} images and no more announced, {} came", at, total,
                    count);
      }
      return set;
    }
    const auto name = parse_file_name(record.name);
    if (!name) {
      return fail(Kind::unsupported, "image stream, offset {}: {} is no image that ferry knows", at, record.name);
    }
    if ((count == 0) != (name->type == Type::inventory)) {
      return fail(Kind::corrupt, "image stream, offset {}: the inventory is not the first image", at);
    }
    FERRY_CHECK(decode_file(set, *name, std::string(record.content), version));
    if (count == 0) {
      FERRY_TRY(version, check_version(set, accept));
    }
  }
}

}  // namespace ferry::image

// The table of image kinds: names, magics, messages, and how many raw bytes stand behind a message.
#pragma once

#include <google/protobuf/message.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <typeinfo>

#include "base/error.h"
#include "image/type.h"

namespace ferry::image {

using MessagePtr = std::shared_ptr<google::protobuf::Message>;

enum class Numbering : std::uint8_t { none, decimal, hexadecimal };

enum class Layout : std::uint8_t {
  raw,       // no magic, no entries
  one,       // one entry
  many,      // any number of entries of one type
  headed,    // one entry of `first`, then any number of `rest`
  ghost,     // headed if the first entry says so, otherwise the rest of the file is its extra bytes
  messages,  // each entry of `first` is followed by as many of `rest` as it says
};

struct KindInfo {
  Type type;
  std::string_view prefix;  // what stands before the number in the file name
  Numbering numbering;
  std::uint32_t magic;
  std::string_view magic_name;  // as show() prints it
  Layout layout;
  MessagePtr (*first)();
  MessagePtr (*rest)();
  // Not descriptors: building those takes longer than reading a whole small set.
  const std::type_info* first_type;
  const std::type_info* rest_type;
};

const KindInfo& kind_info(Type type);
std::span<const KindInfo> all_kinds();

// The first word of a file; inventory.img has none but its own magic.
inline constexpr std::uint32_t kImageMagic = 0x54564319;
inline constexpr std::uint32_t kServiceMagic = 0x55105940;  // stats-dump, stats-restore
inline constexpr std::uint32_t kStatsMagic = 0x57093306;

// How many raw bytes stand behind an entry of an image of `type`.  The one exception is a ghost file
// without chunks: the rest of the file belongs to its first entry.
struct ExtraSize {
  std::uint64_t bytes = 0;
  std::uint64_t padding = 0;  // zeros after them
};
ExtraSize extra_size(Type type, const google::protobuf::Message& message);
// Layout::messages: entries of `rest` that belong to an entry of `first`.
std::uint32_t message_count(const google::protobuf::Message& queue);
// Layout::ghost: whether entries of `rest` follow the first one.
bool has_chunks(const google::protobuf::Message& ghost);

}  // namespace ferry::image

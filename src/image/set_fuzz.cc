// Hostile bytes as every kind of image, and as a stream of a whole set.
//
// Each input is read as the file that its magic says it is (every kind, if the magic is none), and as a
// stream.  What is read has to be written, shown and verified without a crash, and read back the same.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "image/json.h"
#include "image/kinds.h"
#include "image/set.h"
#include "image/verify.h"

namespace {

using namespace ferry::image;

std::uint32_t word_at(const std::string& bytes, std::size_t offset) {
  std::uint32_t word = 0;
  for (std::size_t i = 0; i < 4 && offset + i < bytes.size(); ++i) {
    word |= std::uint32_t{static_cast<unsigned char>(bytes[offset + i])} << (8 * i);
  }
  return word;
}

void must(bool holds) {
  if (!holds) {
    std::abort();
  }
}

void try_file(Name name, const std::string& bytes) {
  Set set;
  if (!decode_file(set, name, bytes, 2)) {
    return;
  }
  const auto written = encode_file(set, name);
  must(written.has_value());
  Set again;
  // The inventory decides the framing of the rest; alone it has the one that encode_file chose.
  must(decode_file(again, name, *written, 2).has_value());
  must(again.entries(name).size() == set.entries(name).size());
  must(show(set).has_value());
  (void)verify(set, -1);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  const auto magic = word_at(bytes, word_at(bytes, 0) == kImageMagic ? 4 : 0);
  for (const KindInfo& kind : all_kinds()) {
    if (kind.layout != Layout::raw && kind.magic == magic) {
      try_file({kind.type, 0}, bytes);
    }
  }
  if (auto set = decode(bytes); set) {
    must(encode(*set).has_value());
    must(show(*set).has_value());
    (void)verify(*set, -1);
  }
  return 0;
}

// The bytes of one image file: magics, then entries (docs/images.md).
#include <fcntl.h>
#include <unistd.h>

#include "image/enumerations.h"
#include "image/kinds.h"
#include "image/proto/inventory.pb.h"
#include "image/proto/stats.pb.h"
#include "image/set.h"
#include "image/stats.h"
#include "sys/file.h"

namespace ferry::image {
namespace {

using google::protobuf::Message;

// CRIU keeps a message in one buffer; the largest in use is an address space of 65,530 mappings
// (vm.max_map_count), below 8 MiB.  A length beyond this is damage, whatever the size of the file.
constexpr std::uint32_t kMaxMessageBytes = 256U << 20;

void put_u32(std::string& out, std::uint32_t value) {
  for (int shift = 0; shift < 32; shift += 8) {
    out.push_back(static_cast<char>(value >> shift & 0xff));
  }
}

// A position in the bytes of a file; every step is checked against what is left.
class Reader {
 public:
  Reader(std::string_view bytes, std::string file) : bytes_(bytes), file_(std::move(file)) {}

  [[nodiscard]] bool done() const { return offset_ == bytes_.size(); }
  [[nodiscard]] std::size_t offset() const { return offset_; }
  [[nodiscard]] std::size_t left() const { return bytes_.size() - offset_; }
  [[nodiscard]] const std::string& file() const { return file_; }

  Result<std::string_view> take(std::uint64_t size, std::string_view what) {
    if (size > left()) {
      return fail(Kind::corrupt, "{}, offset {}: {} of {} bytes, but only {} are left", file_, offset_, what, size,
                  left());
    }
    const auto out = bytes_.substr(offset_, static_cast<std::size_t>(size));
    offset_ += out.size();
    return out;
  }
  Result<std::uint32_t> u32(std::string_view what) {
    FERRY_TRY(const auto four, take(4, what));
    std::uint32_t value = 0;
    for (std::size_t i = 0; i < 4; ++i) {
      value |= std::uint32_t{static_cast<unsigned char>(four[i])} << (8 * i);
    }
    return value;
  }

 private:
  std::string_view bytes_;
  std::string file_;
  std::size_t offset_ = 0;
};

Result<void> read_magic(Reader& in, std::uint32_t wanted, std::string_view what) {
  const auto at = in.offset();
  FERRY_TRY(const auto magic, in.u32(what));
  if (magic != wanted) {
    return fail(Kind::corrupt, "{}, offset {}: {} is {:#010x}, not {:#010x}", in.file(), at, what, magic, wanted);
  }
  return {};
}

Result<MessagePtr> read_message(Reader& in, MessagePtr (*make)()) {
  const auto at = in.offset();
  FERRY_TRY(const auto size, in.u32("length of an entry"));
  if (size > kMaxMessageBytes) {
    return fail(Kind::corrupt, "{}, offset {}: an entry of {} bytes is larger than any", in.file(), at, size);
  }
  FERRY_TRY(const auto bytes, in.take(size, "an entry"));
  auto message = make();
  if (!message->ParsePartialFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return fail(Kind::corrupt, "{}, offset {}: not a {}", in.file(), at, message->GetDescriptor()->name());
  }
  if (auto enums = check_enumerations(*message); !enums) {
    return fail(Kind::corrupt, "{}, offset {}: {}", in.file(), at, enums.error().what);
  }
  if (!message->IsInitialized()) {
    return fail(Kind::corrupt, "{}, offset {}: {} lacks {}", in.file(), at, message->GetDescriptor()->name(),
                message->InitializationErrorString());
  }
  return message;
}

// Appends the entry with the raw bytes that its message announces; the message stays readable.
Result<const Message*> read_entry(Reader& in, Set& set, Name name, MessagePtr (*make)()) {
  FERRY_TRY(auto message, read_message(in, make));
  const auto size = extra_size(name.type, *message);
  FERRY_TRY(const auto extra, in.take(size.bytes, "data of an entry"));
  FERRY_CHECK(in.take(size.padding, "padding of an entry"));
  const Message* out = message.get();
  set.add(name, std::move(message), std::string(extra));
  return out;
}

Result<void> read_ghost(Reader& in, Set& set, Name name, const KindInfo& kind) {
  FERRY_TRY(auto head, read_message(in, kind.first));
  if (!has_chunks(*head)) {
    FERRY_TRY(const auto content, in.take(in.left(), "content"));
    set.add(name, std::move(head), std::string(content));
    return {};
  }
  set.add(name, std::move(head));
  while (!in.done()) {
    FERRY_CHECK(read_entry(in, set, name, kind.rest));
  }
  return {};
}

Result<void> read_entries(Reader& in, Set& set, Name name) {
  const KindInfo& kind = kind_info(name.type);
  for (std::size_t count = 0; !in.done(); ++count) {
    switch (kind.layout) {
      case Layout::one:
        if (count != 0) {
          return fail(Kind::corrupt, "{}, offset {}: more than one entry", in.file(), in.offset());
        }
        FERRY_CHECK(read_entry(in, set, name, kind.first));
        break;
      case Layout::ghost:
        FERRY_CHECK(read_ghost(in, set, name, kind));
        break;
      case Layout::messages: {
        FERRY_TRY(const Message* queue, read_entry(in, set, name, kind.first));
        for (std::uint32_t left = message_count(*queue); left != 0; --left) {
          FERRY_CHECK(read_entry(in, set, name, kind.rest));
        }
        break;
      }
      case Layout::raw:
      case Layout::many:
      case Layout::headed:
        FERRY_CHECK(read_entry(in, set, name, count == 0 ? kind.first : kind.rest));
        break;
    }
  }
  return {};
}

Result<void> put_entry(std::string& out, Name name, const Entry& entry) {
  const Message& message = *entry.message;
  if (!message.IsInitialized()) {
    return fail(Kind::invalid, "{}: {} lacks {}", file_name(name), message.GetDescriptor()->name(),
                message.InitializationErrorString());
  }
  const auto size = message.ByteSizeLong();
  if (size > kMaxMessageBytes) {
    return fail(Kind::unsupported, "{}: an entry of {} bytes is more than an image can hold", file_name(name), size);
  }
  put_u32(out, static_cast<std::uint32_t>(size));
  // In the order of field numbers, as every implementation writes them.
  const auto start = out.size();
  out.resize(start + size);
  message.SerializeWithCachedSizesToArray(reinterpret_cast<std::uint8_t*>(out.data()) + start);
  out += entry.extra;
  return {};
}

Result<void> put_entries(std::string& out, const Set& set, Name name) {
  const KindInfo& kind = kind_info(name.type);
  std::uint32_t due = 0;  // messages that the last queue announced
  bool first = true;
  for (const Entry& entry : set.entries(name)) {
    const auto size = extra_size(name.type, *entry.message);
    const bool open_end = kind.layout == Layout::ghost && first && !has_chunks(*entry.message);
    if (!open_end && size.bytes != entry.extra.size()) {
      return fail(Kind::invalid, "{}: an entry announces {} bytes of data and has {}", file_name(name), size.bytes,
                  entry.extra.size());
    }
    if (kind.layout == Layout::ghost && !first && !has_chunks(*set.entries(name).front().message)) {
      return fail(Kind::invalid, "{}: chunks behind a first entry that announces none", file_name(name));
    }
    if (kind.layout == Layout::messages) {
      const bool queue = typeid(*entry.message) == *kind.first_type;
      if (queue != (due == 0)) {
        return fail(Kind::invalid, "{}: a queue does not have the number of messages it announces", file_name(name));
      }
      due = queue ? message_count(*entry.message) : due - 1;
    }
    FERRY_CHECK(put_entry(out, name, entry));
    out.append(static_cast<std::size_t>(size.padding), '\0');
    first = false;
  }
  if (due != 0) {
    return fail(Kind::invalid, "{}: a queue does not have the number of messages it announces", file_name(name));
  }
  return {};
}

}  // namespace

Result<std::string> encode_file(const Set& set, Name name) {
  const KindInfo& kind = kind_info(name.type);
  if (kind.layout == Layout::raw) {
    const auto* bytes = set.raw(name);
    return bytes == nullptr ? std::string() : *bytes;
  }
  std::string out;
  const auto inventory = set.one<pb::InventoryEntry>({Type::inventory, 0});
  const bool old = inventory && (*inventory)->img_version() == 1;
  if (name.type != Type::inventory && !old) {
    put_u32(out, kImageMagic);
  }
  put_u32(out, kind.magic);
  FERRY_CHECK(put_entries(out, set, name));
  return out;
}

Result<void> decode_file(Set& set, Name name, std::string bytes, std::uint32_t version) {
  const KindInfo& kind = kind_info(name.type);
  if (set.has(name)) {
    return fail(Kind::corrupt, "{} is there twice", file_name(name));
  }
  if (kind.layout == Layout::raw) {
    set.set_raw(name, std::move(bytes));
    return {};
  }
  set.touch(name);
  Reader in(bytes, file_name(name));
  if (name.type != Type::inventory && version != 1) {
    FERRY_CHECK(read_magic(in, kImageMagic, "the common magic"));
  }
  FERRY_CHECK(read_magic(in, kind.magic, "the magic"));
  return read_entries(in, set, name);
}

Result<void> save_stats(const pb::StatsEntry& stats, int directory, const std::string& file) {
  std::string out;
  put_u32(out, kServiceMagic);
  put_u32(out, kStatsMagic);
  std::string bytes;
  if (!stats.IsInitialized()) {
    return fail(Kind::invalid, "{}: StatsEntry lacks {}", file, stats.InitializationErrorString());
  }
  stats.SerializePartialToString(&bytes);
  put_u32(out, static_cast<std::uint32_t>(bytes.size()));
  out += bytes;
  if (::unlinkat(directory, file.c_str(), 0) != 0 && errno != ENOENT) {
    return sys_fail(fmt::format("unlinkat({})", file));
  }
  FERRY_TRY(const UniqueFd fd, sys::open_at(directory, file, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0644));
  return sys::write_all(fd.get(), out.data(), out.size(), file);
}

Result<pb::StatsEntry> load_stats(int directory, const std::string& file) {
  FERRY_TRY(const auto bytes, sys::read_file_at(directory, file));
  Reader in(bytes, file);
  FERRY_CHECK(read_magic(in, kServiceMagic, "the common magic"));
  FERRY_CHECK(read_magic(in, kStatsMagic, "the magic"));
  FERRY_TRY(const auto message, read_message(
                                    in, +[]() -> MessagePtr { return std::make_shared<pb::StatsEntry>(); }));
  if (!in.done()) {
    return fail(Kind::corrupt, "{}, offset {}: more than one entry", file, in.offset());
  }
  return static_cast<const pb::StatsEntry&>(*message);
}

}  // namespace ferry::image

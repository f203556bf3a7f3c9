// One image set in memory: what a checkpoint keeps of a tree, apart from the pages.
//
// Every image of CRIU's format is a named list of protobuf messages, some followed by raw bytes
// (docs/images.md).  A Set holds them decoded, so the rooms in state/ add and look up messages, and
// where they go (a directory, a connection) is decided in one place.
// Unknown fields of messages that were read stay in them and are written back.
#pragma once

#include <google/protobuf/message.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <typeinfo>
#include <vector>

#include "base/error.h"
#include "image/type.h"

namespace ferry::image {

// "core-42.img" is {Type::core, 42}; images that exist once have id 0.
struct Name {
  Type type{};
  std::uint64_t id = 0;
  auto operator<=>(const Name&) const = default;
};
std::string file_name(Name name);
// Kind::gone if it is not the name of an image.
Result<Name> parse_file_name(std::string_view file);

struct Entry {
  std::shared_ptr<google::protobuf::Message> message;
  std::string extra;  // raw bytes after the message, where the kind has them; padding is not among them
};

// Which sets a reader wants.  The set of a pre-dump (image version 0) has pages and nothing to restore.
enum class Accept : std::uint8_t { complete, pre_dump };

class Set {
 public:
  // Appends one entry.  The message's type has to be the one of the kind (asserted: a bug of ours).
  void add(Name name, std::shared_ptr<google::protobuf::Message> message, std::string extra = {});
  template <class M>
  M& add(Name name, M message, std::string extra = {}) {
    auto owned = std::make_shared<M>(std::move(message));
    M& ref = *owned;
    add(name, std::shared_ptr<google::protobuf::Message>(std::move(owned)), std::move(extra));
    return ref;
  }
  // An image that exists although it has no entry (pagemaps of empty segments, seccomp).
  void touch(Name name);
  void set_raw(Name name, std::string bytes);

  [[nodiscard]] bool has(Name name) const;
  // Empty if there is no such image: CRIU does not write what has no entries.
  [[nodiscard]] const std::vector<Entry>& entries(Name name) const;
  [[nodiscard]] const std::string* raw(Name name) const;
  // All images of one kind, by id.
  [[nodiscard]] std::vector<Name> names(Type type) const;
  [[nodiscard]] std::vector<Name> names() const;

  // The only entry of an image that has to be there.  Errors: corrupt, naming the file.
  template <class M>
  Result<const M*> one(Name name) const {
    const auto& list = entries(name);
    if (list.empty() || typeid(*list.front().message) != typeid(M)) {
      return fail(Kind::corrupt, "{} is missing or empty", file_name(name));
    }
    return static_cast<const M*>(list.front().message.get());
  }
  // The messages of type M of an image, without those of another type (the head of a pagemap).
  // Extra bytes are to be had by entries().
  template <class M>
  [[nodiscard]] std::vector<const M*> list(Name name) const {
    std::vector<const M*> out;
    for (const Entry& e : entries(name)) {
      if (typeid(*e.message) == typeid(M)) {
        out.push_back(static_cast<const M*>(e.message.get()));
      }
    }
    return out;
  }

 private:
  struct File {
    std::vector<Entry> entries;
    std::string raw;
  };
  std::map<Name, File> files_;
};

// Reads a whole set from an open directory, all but pages-*.  Checks magics, framing, required fields,
// enumerations and the image version; trusts no length.  Names that do not end in ".img" are not looked at.
// Errors: corrupt (naming file and offset); unsupported (naming what this version of ferry does not read).
Result<Set> load(int directory, Accept accept = Accept::complete);
// Writes every image of the set into an open directory; an existing file of the same name is replaced.
// inventory.img comes last, so that a directory that has it has the rest as well.
Result<void> save(const Set& set, int directory);

// The same set as one byte string, for a connection: the framing is docs/images.md's "stream form".
Result<std::string> encode(const Set& set);
Result<Set> decode(std::string_view bytes, Accept accept = Accept::complete);

// One image as the bytes of its file, and back.  `bytes` of a raw image are its content.
Result<std::string> encode_file(const Set& set, Name name);
// `version` is that of the inventory: 1 has no common magic before the image's own.
Result<void> decode_file(Set& set, Name name, std::string bytes, std::uint32_t version);

}  // namespace ferry::image

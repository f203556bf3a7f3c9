#include "image/json.h"

#include <nlohmann/json.hpp>

#include "image/kinds.h"
#include "image/proto/options.pb.h"
#include "image/words.h"

namespace ferry::image {
namespace {

using google::protobuf::EnumValueDescriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using Json = nlohmann::ordered_json;

constexpr std::size_t kMaxShownBytes = 4096;

Json message_to_json(const Message& message);

Json number_to_json(pb::Show manner, std::int64_t value) {
  return manner == pb::PLAIN ? Json(value) : Json(in_words(manner, static_cast<std::uint64_t>(value)));
}
Json number_to_json(pb::Show manner, std::uint64_t value) {
  return manner == pb::PLAIN ? Json(value) : Json(in_words(manner, value));
}

Json enum_to_json(const EnumValueDescriptor* value) {
  const auto& prefix = value->type()->options().GetExtension(pb::prefix);
  return value->name().starts_with(prefix) ? value->name().substr(prefix.size()) : value->name();
}

Json text_to_json(const FieldDescriptor* field, pb::Show manner, const std::string& text) {
  if (manner == pb::QUOTED) {
    return quoted_bytes(text);
  }
  return field->type() == FieldDescriptor::TYPE_BYTES ? base64(text) : text;
}

Json value_to_json(const Message& message, const FieldDescriptor* field, pb::Show manner) {
  const auto* reflection = message.GetReflection();
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_BOOL:
      return reflection->GetBool(message, field);
    case FieldDescriptor::CPPTYPE_INT32:
      return number_to_json(manner, std::int64_t{reflection->GetInt32(message, field)});
    case FieldDescriptor::CPPTYPE_INT64:
      return number_to_json(manner, std::int64_t{reflection->GetInt64(message, field)});
    case FieldDescriptor::CPPTYPE_UINT32:
      return number_to_json(manner, std::uint64_t{reflection->GetUInt32(message, field)});
    case FieldDescriptor::CPPTYPE_UINT64:
      return number_to_json(manner, std::uint64_t{reflection->GetUInt64(message, field)});
    case FieldDescriptor::CPPTYPE_ENUM:
      return enum_to_json(reflection->GetEnum(message, field));
    case FieldDescriptor::CPPTYPE_STRING:
      return text_to_json(field, manner, reflection->GetString(message, field));
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return message_to_json(reflection->GetMessage(message, field));
    case FieldDescriptor::CPPTYPE_FLOAT:
    case FieldDescriptor::CPPTYPE_DOUBLE:
      break;  // no image has one
  }
  return nullptr;
}

Json item_to_json(const Message& message, const FieldDescriptor* field, pb::Show manner, int index) {
  const auto* reflection = message.GetReflection();
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_BOOL:
      return reflection->GetRepeatedBool(message, field, index);
    case FieldDescriptor::CPPTYPE_INT32:
      return number_to_json(manner, std::int64_t{reflection->GetRepeatedInt32(message, field, index)});
    case FieldDescriptor::CPPTYPE_INT64:
      return number_to_json(manner, std::int64_t{reflection->GetRepeatedInt64(message, field, index)});
    case FieldDescriptor::CPPTYPE_UINT32:
      return number_to_json(manner, std::uint64_t{reflection->GetRepeatedUInt32(message, field, index)});
    case FieldDescriptor::CPPTYPE_UINT64:
      return number_to_json(manner, std::uint64_t{reflection->GetRepeatedUInt64(message, field, index)});
    case FieldDescriptor::CPPTYPE_ENUM:
      return enum_to_json(reflection->GetRepeatedEnum(message, field, index));
    case FieldDescriptor::CPPTYPE_STRING:
      return text_to_json(field, manner, reflection->GetRepeatedString(message, field, index));
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return message_to_json(reflection->GetRepeatedMessage(message, field, index));
    case FieldDescriptor::CPPTYPE_FLOAT:
    case FieldDescriptor::CPPTYPE_DOUBLE:
      break;  // no image has one
  }
  return nullptr;
}

Json list_to_json(const Message& message, const FieldDescriptor* field, pb::Show manner) {
  const auto* reflection = message.GetReflection();
  const int size = reflection->FieldSize(message, field);
  if (manner == pb::ADDRESS) {
    std::vector<std::uint32_t> words;
    for (int i = 0; i < size; ++i) {
      words.push_back(reflection->GetRepeatedUInt32(message, field, i));
    }
    if (auto text = address(words); !text.empty()) {
      return Json::array({std::move(text)});
    }
    manner = pb::PLAIN;
  }
  Json out = Json::array();
  for (int i = 0; i < size; ++i) {
    out.push_back(item_to_json(message, field, manner, i));
  }
  return out;
}

Json message_to_json(const Message& message) {
  Json out = Json::object();
  const auto* reflection = message.GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection->ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    const pb::Show manner = field->options().GetExtension(pb::show);
    // json_name is CRIU's name where C++ cannot have it.
    out[field->has_json_name() ? field->json_name() : field->name()] =
        field->is_repeated() ? list_to_json(message, field, manner) : value_to_json(message, field, manner);
  }
  const auto& unknown = reflection->GetUnknownFields(message);
  for (int i = 0; i < unknown.field_count(); ++i) {
    out["unknown_fields"].push_back(unknown.field(i).number());
  }
  return out;
}

Json bytes_to_json(std::string_view bytes) {
  if (bytes.size() > kMaxShownBytes) {
    return fmt::format("{} bytes", bytes.size());
  }
  return base64(bytes);
}

bool may_have_extra(Type type) {
  switch (type) {
    case Type::pipes_data:
    case Type::fifo_data:
    case Type::sk_queues:
    case Type::tcp_stream:
    case Type::ghost_file:
    case Type::ipcns_sem:
    case Type::bpfmap_data:
      return true;
    default:
      return false;
  }
}

Json image_to_json(const Set& set, Name name) {
  const KindInfo& kind = kind_info(name.type);
  Json out = Json::object();
  if (kind.layout == Layout::raw) {
    const auto* bytes = set.raw(name);
    out["raw"] = fmt::format("{} bytes", bytes == nullptr ? 0 : bytes->size());
    return out;
  }
  out["magic"] = kind.magic_name;
  Json entries = Json::array();
  for (const Entry& entry : set.entries(name)) {
    Json shown = message_to_json(*entry.message);
    if (!entry.extra.empty() || may_have_extra(name.type)) {
      shown["extra"] = bytes_to_json(entry.extra);
    }
    entries.push_back(std::move(shown));
  }
  out["entries"] = std::move(entries);
  return out;
}

}  // namespace

Result<std::string> show(const Set& set) {
  Json out = Json::object();
  for (const Name name : set.names()) {
    out[file_name(name)] = image_to_json(set, name);
  }
  return out.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace ferry::image

#include "image/enumerations.h"

#include <google/protobuf/unknown_field_set.h>

#include <set>
#include <typeinfo>

#include "image/kinds.h"
#include "image/proto/core.pb.h"
#include "image/proto/files.pb.h"
#include "image/proto/inventory.pb.h"
#include "image/proto/remap.pb.h"
#include "image/proto/sockets.pb.h"

namespace ferry::image {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

// Message types that hold an enumeration or a message that does.
class EnumHolders {
 public:
  EnumHolders() {
    for (const KindInfo& kind : all_kinds()) {
      for (auto* type : {kind.first, kind.rest}) {
        if (type != nullptr) {
          visit(type()->GetDescriptor());
        }
      }
    }
  }
  [[nodiscard]] bool has(const Descriptor* type) const { return holders_.contains(type); }

 private:
  bool visit(const Descriptor* type) {
    if (!seen_.insert(type).second) {
      return holders_.contains(type);
    }
    bool holds = false;
    for (int i = 0; i < type->field_count(); ++i) {
      const FieldDescriptor* field = type->field(i);
      holds |= field->cpp_type() == FieldDescriptor::CPPTYPE_ENUM;
      if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
        holds |= visit(field->message_type());
      }
    }
    if (holds) {
      holders_.insert(type);
    }
    return holds;
  }
  std::set<const Descriptor*> seen_;
  std::set<const Descriptor*> holders_;
};

Result<void> check_tree(const EnumHolders& holders, const Message& message) {
  const Descriptor* type = message.GetDescriptor();
  if (!holders.has(type)) {
    return {};
  }
  const auto* reflection = message.GetReflection();
  const auto& unknown = reflection->GetUnknownFields(message);
  for (int i = 0; i < unknown.field_count(); ++i) {
    const auto* field = type->FindFieldByNumber(unknown.field(i).number());
    if (field != nullptr && field->cpp_type() == FieldDescriptor::CPPTYPE_ENUM) {
      return fail(Kind::corrupt, "{}.{} has a value that is none of {}", type->name(), field->name(),
                  field->enum_type()->name());
    }
  }
  for (int i = 0; i < type->field_count(); ++i) {
    const auto* field = type->field(i);
    if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE || !holders.has(field->message_type())) {
      continue;
    }
    if (field->is_repeated()) {
      for (int k = 0; k < reflection->FieldSize(message, field); ++k) {
        FERRY_CHECK(check_tree(holders, reflection->GetRepeatedMessage(message, field, k)));
      }
    } else if (reflection->HasField(message, field)) {
      FERRY_CHECK(check_tree(holders, reflection->GetMessage(message, field)));
    }
  }
  return {};
}

// Whether something that the schema does not know stands where an optional enumeration could.  A required
// one with an unknown number is missing, so the message is not initialized.  This costs nothing, while
// reflection first builds the descriptors of the whole schema: more than reading a small set takes.
bool suspicious(const Message& message) {
  const auto& type = typeid(message);
  const auto odd = [](const auto& part) { return !part.unknown_fields().empty(); };
  if (type == typeid(pb::CoreEntry)) {
    const auto& core = static_cast<const pb::CoreEntry&>(message);
    return odd(core.thread_info().gpregs()) || odd(core.tc()) || odd(core.thread_core());
  }
  if (type == typeid(pb::InventoryEntry)) {
    return odd(static_cast<const pb::InventoryEntry&>(message));
  }
  if (type == typeid(pb::RemapFilePathEntry)) {
    return odd(static_cast<const pb::RemapFilePathEntry&>(message));
  }
  if (type == typeid(pb::FileEntry)) {
    const auto& file = static_cast<const pb::FileEntry&>(message);
    return odd(file.isk()) || odd(file.usk());
  }
  if (type == typeid(pb::InetSkEntry)) {
    return odd(static_cast<const pb::InetSkEntry&>(message));
  }
  return type == typeid(pb::UnixSkEntry) && odd(static_cast<const pb::UnixSkEntry&>(message));
}

}  // namespace

Result<void> check_enumerations(const Message& message) {
  if (message.IsInitialized() && !suspicious(message)) {
    return {};
  }
  static const EnumHolders kHolders;
  return check_tree(kHolders, message);
}

}  // namespace ferry::image

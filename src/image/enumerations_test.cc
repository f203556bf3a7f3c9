#include "image/enumerations.h"

#include <google/protobuf/unknown_field_set.h>
#include <gtest/gtest.h>

#include <set>

#include "image/kinds.h"

namespace ferry::image {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

constexpr std::uint64_t kNobodysNumber = 7777;

// Gives every required field a value, so that only what a test does can be wrong.
void complete(Message& message) {
  const auto* type = message.GetDescriptor();
  const auto* reflection = message.GetReflection();
  for (int i = 0; i < type->field_count(); ++i) {
    const FieldDescriptor* field = type->field(i);
    if (!field->is_required() || reflection->HasField(message, field)) {
      continue;
    }
    switch (field->cpp_type()) {
      case FieldDescriptor::CPPTYPE_MESSAGE:
        complete(*reflection->MutableMessage(&message, field));
        break;
      case FieldDescriptor::CPPTYPE_ENUM:
        reflection->SetEnum(&message, field, field->enum_type()->value(0));
        break;
      case FieldDescriptor::CPPTYPE_STRING:
        reflection->SetString(&message, field, "x");
        break;
      case FieldDescriptor::CPPTYPE_BOOL:
        reflection->SetBool(&message, field, false);
        break;
      case FieldDescriptor::CPPTYPE_UINT32:
        reflection->SetUInt32(&message, field, 0);
        break;
      case FieldDescriptor::CPPTYPE_UINT64:
        reflection->SetUInt64(&message, field, 0);
        break;
      case FieldDescriptor::CPPTYPE_INT32:
        reflection->SetInt32(&message, field, 0);
        break;
      case FieldDescriptor::CPPTYPE_INT64:
        reflection->SetInt64(&message, field, 0);
        break;
      default:
        FAIL() << field->full_name() << " is of a type that no image had when this was written";
    }
  }
}

// Every place under `part` of `whole` where an enumeration may stand gets a number that is no name of it.
void spoil_each(Message& whole, Message& part, std::set<const google::protobuf::Descriptor*>& above, int& tried) {
  const auto* type = part.GetDescriptor();
  if (!above.insert(type).second) {
    return;
  }
  const auto* reflection = part.GetReflection();
  for (int i = 0; i < type->field_count(); ++i) {
    const FieldDescriptor* field = type->field(i);
    if (field->cpp_type() == FieldDescriptor::CPPTYPE_ENUM) {
      reflection->ClearField(&part, field);
      reflection->MutableUnknownFields(&part)->AddVarint(field->number(), kNobodysNumber);
      EXPECT_FALSE(check_enumerations(whole)) << field->full_name() << " in " << whole.GetDescriptor()->name();
      reflection->MutableUnknownFields(&part)->Clear();
      complete(part);
      EXPECT_TRUE(check_enumerations(whole)) << field->full_name() << " in " << whole.GetDescriptor()->name();
      ++tried;
    } else if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      const bool was_there = !field->is_repeated() && reflection->HasField(part, field);
      Message* inner =
          field->is_repeated() ? reflection->AddMessage(&part, field) : reflection->MutableMessage(&part, field);
      complete(*inner);
      spoil_each(whole, *inner, above, tried);
      if (!was_there) {
        reflection->ClearField(&part, field);
      }
    }
  }
  above.erase(type);
}

TEST(Enumerations, AreLookedAtWhereverTheSchemaHasThem) {
  int tried = 0;
  for (const KindInfo& kind : all_kinds()) {
    for (auto* make : {kind.first, kind.rest}) {
      if (make != nullptr) {
        const MessagePtr message = make();
        complete(*message);
        std::set<const google::protobuf::Descriptor*> above;
        spoil_each(*message, *message, above, tried);
      }
    }
  }
  EXPECT_GT(tried, 10);
}

}  // namespace
}  // namespace ferry::image

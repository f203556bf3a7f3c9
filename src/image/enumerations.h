// Numbers in enumerations of the schema that are none of their names.
#pragma once

#include <google/protobuf/message.h>

#include "base/error.h"

namespace ferry::image {

// Kind::corrupt if there is one, at any depth.  Protobuf keeps such a number as an unknown field, which
// would read as "not set".
Result<void> check_enumerations(const google::protobuf::Message& message);

}  // namespace ferry::image

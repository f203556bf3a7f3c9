// Image sets as text for people and scripts.
#pragma once

#include <string>

#include "base/error.h"
#include "image/set.h"

namespace ferry::image {

// One JSON object: for each file its magic's name and its entries, numbers as the words of the manual
// pages where they are flags or names.  Raw images, and raw bytes behind an entry beyond 4 KiB, are told
// by their size.  Text that is not UTF-8 has U+FFFD in its place.
Result<std::string> show(const Set& set);

}  // namespace ferry::image

// An image set looked at before it is trusted.
#pragma once

#include <string>
#include <vector>

#include "base/error.h"

namespace ferry::program {

// What does not fit together in the set; an error if it cannot even be read.
Result<std::vector<std::string>> image_faults(const std::string& directory);

// The first fault as an error.
Result<void> verify_images(const std::string& directory);

}  // namespace ferry::program

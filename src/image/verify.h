// What is missing or does not fit together in an image set.
#pragma once

#include <string>
#include <vector>

#include "base/error.h"
#include "image/set.h"

namespace ferry::image {

// Sentences that name the file and the number, empty if every reference leads somewhere: tasks to their
// images, descriptors to open files, mappings to what backs them, queues to sockets, ranges to pages.
// `directory` is where pages-*.img are; -1 leaves pages out.
std::vector<std::string> verify(const Set& set, int directory);

}  // namespace ferry::image

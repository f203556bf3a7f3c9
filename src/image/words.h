// Numbers in the words of the manual pages, as show() prints them.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "image/proto/options.pb.h"

namespace ferry::image {

// A number that has no word stays a number; manners that are not about single numbers give hexadecimal.
std::string in_words(pb::Show manner, std::uint64_t value);
// Words in memory order: one is an IPv4 address, four are an IPv6 address; empty for another count.
std::string address(std::span<const std::uint32_t> words);
// Printable ASCII as it is, other bytes and '=' as =XX.
std::string quoted_bytes(std::string_view bytes);
std::string base64(std::string_view bytes);

}  // namespace ferry::image

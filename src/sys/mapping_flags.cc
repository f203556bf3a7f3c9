#include "sys/mapping_flags.h"

#include <algorithm>

namespace ferry::sys {
namespace {

using Pattern = std::vector<bool>;  // in which of the examples

}  // namespace

Result<MappingFlags> MappingFlags::learn(const std::vector<Example>& examples) {
  std::map<Pattern, Group> groups;
  for (int bit = 0; bit < 64; ++bit) {
    Pattern in;
    for (const Example& e : examples) {
      in.push_back((e.word >> bit & 1) != 0);
    }
    if (std::find(in.begin(), in.end(), true) != in.end()) {
      groups[in].bits |= std::uint64_t{1} << bit;
    }
  }
  std::map<std::string_view, Pattern> names;
  for (std::size_t i = 0; i < examples.size(); ++i) {
    for (std::string_view rest = examples[i].names; !rest.empty();) {
      const std::string_view name = rest.substr(0, rest.find(' '));
      rest.remove_prefix(std::min(rest.size(), name.size() + 1));
      if (!name.empty() && name != "??") {  // the kernel has no name for it either
        Pattern& in = names.try_emplace(name, examples.size(), false).first->second;
        in[i] = true;
      }
    }
  }
  for (const auto& [name, in] : names) {
    const auto group = groups.find(in);
    if (group == groups.end()) {
      return fail(Kind::unsupported, "the flag \"{}\" of mappings is no bit of this kernel's", name);
    }
    group->second.names += std::string(name) + " ";
  }
  MappingFlags out;
  for (auto& [in, group] : groups) {
    out.groups_.push_back(std::move(group));
  }
  return out;
}

std::optional<std::string> MappingFlags::names_of(std::uint64_t word) const {
  std::string out = " ";
  for (const Group& group : groups_) {
    const std::uint64_t set = word & group.bits;
    if (set != 0 && set != group.bits) {
      return std::nullopt;
    }
    out += set != 0 ? group.names : "";
    word &= ~group.bits;
  }
  return word == 0 ? std::optional(std::move(out)) : std::nullopt;
}

}  // namespace ferry::sys

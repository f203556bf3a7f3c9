// Small files, as bodies of live tests read and write them.
#pragma once

#include <fstream>
#include <iterator>
#include <string>

namespace ferry::live {

// Empty if there is none.
inline std::string content_of(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

// Whether the file took it.
inline bool put(const std::string& path, const std::string& text) {
  std::ofstream file(path);
  file << text << std::flush;
  return file.good();
}

}  // namespace ferry::live

// The parts of verify(), one for each subject.
#pragma once

#include <fmt/core.h>

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "image/proto/files.pb.h"
#include "image/set.h"

namespace ferry::image {

class Findings {
 public:
  template <class... Args>
  void add(fmt::format_string<Args...> text, Args&&... args) {
    list_.push_back(fmt::format(text, std::forward<Args>(args)...));
  }
  template <class... Args>
  void require(bool holds, fmt::format_string<Args...> text, Args&&... args) {
    if (!holds) {
      add(text, std::forward<Args>(args)...);
    }
  }
  std::vector<std::string> take() && { return std::move(list_); }

 private:
  std::vector<std::string> list_;
};

// files.img by what refers to it.
class FileIndex {
 public:
  explicit FileIndex(const Set& set);
  [[nodiscard]] bool has(pb::FdType type, std::uint64_t id) const { return files_.contains({type, id}); }
  [[nodiscard]] bool has_any(std::uint64_t id) const { return ids_.contains(id); }

 private:
  std::set<std::pair<pb::FdType, std::uint64_t>> files_;
  std::set<std::uint64_t> ids_;
};

// The message of a FileEntry that its type selects, or null.
const google::protobuf::Message* file_body(const pb::FileEntry& entry);

void verify_inventory(const Set& set, Findings& out);
void verify_tasks(const Set& set, const FileIndex& files, Findings& out);
void verify_memory(const Set& set, const FileIndex& files, Findings& out);
void verify_pages(const Set& set, int directory, Findings& out);
void verify_files(const Set& set, const FileIndex& files, Findings& out);
void verify_queues(const Set& set, const FileIndex& files, Findings& out);
void verify_namespaces(const Set& set, Findings& out);
void verify_tables(const Set& set, Findings& out);

}  // namespace ferry::image

#include "container/leaving_tree.h"

#include <sys/stat.h>
#include <sys/xattr.h>

#include <algorithm>
#include <filesystem>
#include <utility>

namespace ferry::container {
namespace {

// Smaller ones are sent whole: asking what is there takes longer.
constexpr std::int64_t kWorthAPatch = 1 << 20;

using Files = std::map<std::string, LayerFile>;

// Of a map that is sorted by path: what is below a directory.
std::pair<Files::const_iterator, Files::const_iterator> below(const Files& files, const std::string& path) {
  return {files.lower_bound(path + "/"), files.lower_bound(path + "0")};  // '0' is what follows '/'
}

bool is_removed(const std::vector<std::string>& removed, const std::string& path) {
  return std::any_of(removed.begin(), removed.end(), [&](const std::string& top) {
    return path == top || (path.starts_with(top) && path[top.size()] == '/');
  });
}

}  // namespace

Result<LayerReport> LeavingTree::pack_all(int out_fd) {
  own_ctime_ = own_ctime();
  FERRY_TRY(look_, look_at_layer(directory_));
  std::vector<std::string> paths{"."};
  for (const auto& [path, file] : look_.files) {
    paths.push_back(path);
  }
  return pack_running(directory_, paths, false, out_fd);
}

void LeavingTree::distrust(const std::string& path) {
  if (const auto seen = look_.files.find(path); seen != look_.files.end()) {
    seen->second.ino = 0;  // no file has it, so the next look finds another one
  }
}

// A directory may be away, or another one in its place, while it is packed, and be back at the next look, with no stamp
// on what is below it: what was packed has to be what was seen.
Result<LayerReport> LeavingTree::pack_running(const std::string& from, const std::vector<std::string>& paths,
                                              bool for_mounted, int out_fd) {
  const auto check = [this](const std::string& path, bool there) {
    const auto seen = look_.files.find(path);
    struct stat info {};
    if (!there || (seen != look_.files.end() &&
                   (::lstat((directory_ + "/" + path).c_str(), &info) != 0 || info.st_ino != seen->second.ino))) {
      distrust(path);
    }
  };
  return pack_layer_entries(from, paths, {.may_change = true, .for_mounted = for_mounted, .on_entry = check}, out_fd);
}

std::int64_t LeavingTree::own_ctime() const {
  struct stat info {};
  return ::stat(directory_.c_str(), &info) == 0 ? info.st_ctim.tv_sec * 1'000'000'000 + info.st_ctim.tv_nsec : 0;
}

Result<TreeChanges> LeavingTree::changes(const std::optional<std::set<std::string>>& named,
                                         const std::set<std::string>& mapped) {
  const std::int64_t was = std::exchange(own_ctime_, own_ctime());
  LayerLook before{.files = {}, .begun_ns = look_.begun_ns};
  LayerDelta delta;
  if (named.has_value()) {
    std::set<std::string> all = *named;
    all.insert(mapped.begin(), mapped.end());
    all.erase(".");
    add_links(all);
    FERRY_TRY(const LayerLook now, look_at_some(all, before));
    delta = compare_layers(before, now, mapped);
    for (const auto& [path, file] : before.files) {
      look_.files.erase(path);
    }
    for (const auto& [path, file] : now.files) {
      look_.files.insert_or_assign(path, file);
    }
    if (!all.empty()) {
      look_.begun_ns = now.begun_ns;
    }
  } else {
    FERRY_TRY(LayerLook now, look_at_layer(directory_));
    before.files = std::move(look_.files);
    delta = compare_layers(before, now, mapped);
    look_ = std::move(now);
  }
  TreeChanges out = sorted(delta, before.files);
  out.itself = own_ctime_ != was;
  return out;
}

// What there is of some paths, and in `before` what there was of them.
Result<LayerLook> LeavingTree::look_at_some(const std::set<std::string>& paths, LayerLook& before) const {
  LayerLook now;
  for (const std::string& path : paths) {
    FERRY_TRY(LayerLook here, look_at_path(directory_, path, false));
    if (now.begun_ns == 0) {
      now.begun_ns = here.begun_ns;
    }
    const auto was = look_.files.find(path);
    const auto is = here.files.find(path);
    const bool same_directory = was != look_.files.end() && is != here.files.end() &&
                                was->second.ino == is->second.ino && S_ISDIR(was->second.mode) &&
                                S_ISDIR(is->second.mode) && was->second.opaque == is->second.opaque;
    if (was != look_.files.end()) {
      before.files.insert(*was);
    }
    if (!same_directory) {
      const auto [from, to] = below(look_.files, path);
      before.files.insert(from, to);
    }
    if (is != here.files.end() && S_ISDIR(is->second.mode) && !same_directory) {
      FERRY_TRY(here, look_at_path(directory_, path, true));
    }
    for (const auto& [seen, file] : here.files) {
      now.files.insert_or_assign(seen, file);
    }
  }
  FERRY_CHECK(look_at_parents(before, now));
  return now;
}

// A directory that was not there when it was looked at may have come back before what is below it was: then all of it
// is looked at, as if it were new.  If it is gone again, so is what was seen there.
Result<void> LeavingTree::look_at_parents(const LayerLook& before, LayerLook& now) const {
  std::set<std::string> parents;
  for (const auto& [path, file] : now.files) {
    for (std::size_t slash = path.find('/'); slash != std::string::npos; slash = path.find('/', slash + 1)) {
      parents.insert(path.substr(0, slash));
    }
  }
  for (const std::string& parent : parents) {  // those above before those below
    if (now.files.contains(parent) || (look_.files.contains(parent) && !before.files.contains(parent))) {
      continue;
    }
    FERRY_TRY(const LayerLook here, look_at_path(directory_, parent, true));
    if (!here.files.contains(parent)) {
      const auto [from, to] = below(now.files, parent);
      now.files.erase(from, to);
    }
    for (const auto& [seen, file] : here.files) {
      now.files.insert_or_assign(seen, file);
    }
  }
  return {};
}

// A file with several names was written by one of them.
void LeavingTree::add_links(std::set<std::string>& named) const {
  std::set<std::uint64_t> inodes;
  for (const std::string& path : named) {
    if (const auto was = look_.files.find(path);
        was != look_.files.end() && was->second.links > 1 && !S_ISDIR(was->second.mode)) {
      inodes.insert(was->second.ino);
    }
    struct stat info {};
    if (::lstat((directory_ + "/" + path).c_str(), &info) == 0 && info.st_nlink > 1 && !S_ISDIR(info.st_mode)) {
      inodes.insert(info.st_ino);
    }
  }
  if (inodes.empty()) {
    return;
  }
  for (const auto& [path, file] : look_.files) {
    if (inodes.contains(file.ino)) {
      named.insert(path);
    }
  }
}

// A directory of the image that was renamed: the upper directory has only its new name, and where the rest is.
void LeavingTree::add_redirected(const std::string& path, std::set<std::string>& packed) const {
  if (::lgetxattr((directory_ + "/" + path).c_str(), "trusted.overlay.redirect", nullptr, 0) <= 0) {
    return;
  }
  std::error_code failed;
  for (std::filesystem::recursive_directory_iterator it(content_ + "/" + path, failed), end; it != end && !failed;
       it.increment(failed)) {
    packed.insert(it->path().string().substr(content_.size() + 1));
  }
}

TreeChanges LeavingTree::sorted(const LayerDelta& delta, const Files& before) const {
  TreeChanges out;
  out.removed = delta.removed;
  std::set<std::string> packed;
  for (const std::string& path : delta.changed) {
    const LayerFile& now = look_.files.at(path);
    const auto was = before.find(path);
    if (was != before.end() && was->second.ino == now.ino && S_ISREG(now.mode) && S_ISREG(was->second.mode) &&
        now.links == 1 && was->second.links == 1 && now.size >= kWorthAPatch && was->second.size >= kWorthAPatch &&
        !is_removed(delta.removed, path)) {
      out.patched.push_back(path);
      continue;
    }
    packed.insert(path);
    if (form_ == TreeForm::overlay && S_ISDIR(now.mode) && (was == before.end() || was->second.ino != now.ino)) {
      add_redirected(path, packed);
    }
    for (std::filesystem::path parent = std::filesystem::path(path).parent_path(); !parent.empty();
         parent = parent.parent_path()) {
      packed.insert(parent);
    }
  }
  for (const std::string& path : delta.removed) {
    for (std::filesystem::path parent = std::filesystem::path(path).parent_path(); !parent.empty();
         parent = parent.parent_path()) {
      if (look_.files.contains(parent)) {
        packed.insert(parent);
      }
    }
  }
  out.packed.assign(packed.begin(), packed.end());  // a parent sorts before its children
  return out;
}

Result<LayerReport> LeavingTree::pack(const TreeChanges& changes, bool may_change, int out_fd) {
  // Never empty, so that a stream that was cut is known from one that has nothing to say.
  std::vector<std::string> paths{"."};
  paths.insert(paths.end(), changes.packed.begin(), changes.packed.end());
  const bool for_mounted = form_ == TreeForm::overlay;
  return may_change ? pack_running(content_, paths, for_mounted, out_fd)
                    : pack_layer_entries(content_, paths, {.may_change = false, .for_mounted = for_mounted}, out_fd);
}

}  // namespace ferry::container

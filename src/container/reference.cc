#include "container/reference.h"

#include <sys/stat.h>

#include <cerrno>
#include <filesystem>

#include "base/log.h"
#include "container/bundle.h"
#include "container/checkpoint_dir.h"
#include "container/json.h"
#include "container/random_id.h"
#include "container/small_file.h"

namespace ferry::container {

std::string encode_reference(const ReferenceContent& content) {
  Json out = {{"version", 1}, {"id", content.id}};
  if (content.receiver.empty()) {
    out["images"] = content.images;
  } else {
    out["receiver"] = content.receiver;
  }
  if (content.hostname) {
    out["hostname"] = *content.hostname;
  }
  if (content.close_tcp) {
    out["tcp_close"] = true;
  }
  if (!content.lazy_pages.empty()) {
    out["lazy_pages"] = content.lazy_pages;
  }
  return json_dump(out) + "\n";
}

Result<ReferenceContent> decode_reference(std::string_view json) {
  FERRY_TRY(const Json root, parse_json(json, kReferenceFile));
  if (const auto version = json_int(root, "version"); version != 1) {
    return fail(Kind::unsupported, "{} has format version {}, this ferry knows version 1", kReferenceFile, version);
  }
  ReferenceContent out{.id = json_text(root, "id"),
                       .images = json_text(root, "images"),
                       .receiver = json_text(root, "receiver"),
                       .hostname = std::nullopt,
                       .close_tcp = json_bool(root, "tcp_close"),
                       .lazy_pages = json_text(root, "lazy_pages")};
  if (json_at(root, "hostname").is_string()) {
    out.hostname = json_text(root, "hostname");
  }
  const std::string& path = out.receiver.empty() ? out.images : out.receiver;
  if (out.id.empty() || !path.starts_with('/') || (!out.receiver.empty() && !out.images.empty())) {
    return fail(Kind::corrupt, "{} lacks an id or one absolute path", kReferenceFile);
  }
  return out;
}

Result<Reference> Reference::make(const std::string& checkpoints_dir, ReferenceContent content,
                                  const std::vector<std::string>& descriptors) {
  FERRY_TRY(content.id, random_id());
  if (::mkdir(checkpoints_dir.c_str(), 0700) != 0 && errno != EEXIST) {
    return sys_fail(fmt::format("mkdir({})", checkpoints_dir));
  }
  Reference out;
  out.name_ = "ferry-" + content.id;
  const std::string directory = checkpoints_dir + "/" + out.name_;
  if (::mkdir(directory.c_str(), 0700) != 0) {
    return sys_fail(fmt::format("mkdir({})", directory));
  }
  out.directory_ = directory;
  FERRY_CHECK(write_new_file(directory + "/" + kReferenceFile, encode_reference(content)));
  FERRY_CHECK(write_new_file(directory + "/" + kDescriptorsFile, encode_descriptors(descriptors)));
  return out;
}

Reference::~Reference() {
  if (directory_.empty()) {
    return;
  }
  std::error_code failed;
  std::filesystem::remove_all(directory_, failed);
  if (failed) {
    log::warning("{} could not be removed: {}", directory_, failed.message());
  }
}

}  // namespace ferry::container

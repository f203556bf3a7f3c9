#include "engine/reference_file.h"

#include <unistd.h>

#include <nlohmann/json.hpp>

#include "sys/file.h"

namespace ferry::engine {

Result<ReferenceFile> parse_reference(std::string_view text) {
  const auto json = nlohmann::json::parse(text, nullptr, false);
  if (!json.is_object() || !json.contains("version") || !json["version"].is_number_integer()) {
    return fail(Kind::corrupt, "{} cannot be read", kReferenceFileName);
  }
  if (json["version"].get<long>() != 1) {
    return fail(Kind::unsupported, "{} has a version that this ferry does not know; use the ferry that wrote it",
                kReferenceFileName);
  }
  ReferenceFile out;
  const auto text_of = [&](const char* key) {
    const auto found = json.find(key);
    return found != json.end() && found->is_string() ? found->get<std::string>() : std::string();
  };
  out.images = text_of("images");
  out.receiver = text_of("receiver");
  if (json.contains("hostname") && json["hostname"].is_string()) {
    out.hostname = text_of("hostname");
  }
  out.lazy_pages = text_of("lazy_pages");
  out.tcp_close = json.contains("tcp_close") && json["tcp_close"].is_boolean() && json["tcp_close"].get<bool>();
  if (out.images.empty() == out.receiver.empty() || (out.images + out.receiver).front() != '/') {
    return fail(Kind::corrupt, "{} has to name one absolute path", kReferenceFileName);
  }
  return out;
}

Result<std::optional<ReferenceFile>> read_reference(int images_dir) {
  const auto text = sys::read_file_at(images_dir, kReferenceFileName);
  if (!text.has_value()) {
    if (text.error().kind == Kind::gone) {
      return std::optional<ReferenceFile>();
    }
    return tl::unexpected<Error>(text.error());
  }
  FERRY_TRY(auto reference, parse_reference(*text));
  return std::optional(std::move(reference));
}

void discard_reference(int images_dir) {
  const auto path = sys::read_link(fmt::format("/proc/self/fd/{}", images_dir));
  if (path.has_value() && path->find("/ctrd-checkpoint") != std::string::npos) {
    ::unlinkat(images_dir, kReferenceFileName, 0);
    ::unlinkat(images_dir, "descriptors.json", 0);
  }
}

}  // namespace ferry::engine

#include "container/image_transfer.h"

#include <archive.h>
#include <archive_entry.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <memory>
#include <optional>
#include <thread>

#include "base/unique_fd.h"
#include "container/digest.h"
#include "container/json.h"

namespace ferry::container {
namespace {

struct FreeReader {
  void operator()(archive* a) const { archive_read_free(a); }
};
struct FreeWriter {
  void operator()(archive* a) const { archive_write_free(a); }
};
using Reader = std::unique_ptr<archive, FreeReader>;
using Writer = std::unique_ptr<archive, FreeWriter>;

// A download as a descriptor to read from, since libarchive pulls what libcurl pushes.
class Saved {
 public:
  static Result<std::unique_ptr<Saved>> open(Docker& docker, const std::string& name) {
    std::array<int, 2> ends{};
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0) {
      return sys_fail("socketpair");
    }
    auto saved = std::make_unique<Saved>();
    saved->reader_ = UniqueFd(ends[0]);
    saved->thread_ = std::thread([&docker, name, self = saved.get(), writer = UniqueFd(ends[1])] {
      const auto sink = [&](std::span<const std::byte> data) -> Result<void> {
        while (!data.empty()) {
          const ssize_t sent = ::send(writer.get(), data.data(), data.size(), MSG_NOSIGNAL);
          if (sent < 0 && errno != EINTR) {
            return sys_fail("send(saved image)");
          }
          data = data.subspan(static_cast<std::size_t>(sent < 0 ? 0 : sent));
        }
        return {};
      };
      if (auto got = docker.api().download("/images/" + url_escape(name) + "/get", sink); !got) {
        self->broken_ = std::move(got).error();
      }
      ::shutdown(writer.get(), SHUT_RDWR);
    });
    return saved;
  }
  ~Saved() { static_cast<void>(end()); }

  [[nodiscard]] int fd() const { return reader_.get(); }
  // Waits for the download.  Meaningful only after everything was read.
  Result<void> end() {
    reader_.reset();
    if (thread_.joinable()) {
      thread_.join();
    }
    if (broken_) {
      return tl::unexpected<Error>(*broken_);
    }
    return {};
  }

 private:
  UniqueFd reader_;
  std::thread thread_;
  std::optional<Error> broken_;
};

auto archive_fail(archive* a, std::string_view what) {
  const char* reason = archive_error_string(a);
  return fail(Kind::corrupt, "{}: {}", what, reason == nullptr ? "unknown reason" : reason);
}

Result<Reader> open_tar(int fd) {
  Reader reader(archive_read_new());
  archive_read_support_format_tar(reader.get());
  if (archive_read_open_fd(reader.get(), fd, 512 * 1024) != ARCHIVE_OK) {
    return archive_fail(reader.get(), "reading the saved image");
  }
  return reader;
}

Result<std::string> read_manifest(Docker& docker, const std::string& name) {
  constexpr std::size_t kLimit = 16 << 20;
  FERRY_TRY(const auto saved, Saved::open(docker, name));
  FERRY_TRY(const Reader reader, open_tar(saved->fd()));
  archive_entry* entry = nullptr;
  while (archive_read_next_header(reader.get(), &entry) == ARCHIVE_OK) {
    const char* path = archive_entry_pathname(entry);
    if (path == nullptr || std::string_view(path) != "manifest.json") {
      continue;
    }
    std::string text;
    std::array<char, 65536> buffer{};
    for (;;) {
      const la_ssize_t got = archive_read_data(reader.get(), buffer.data(), buffer.size());
      if (got < 0 || text.size() > kLimit) {
        return archive_fail(reader.get(), "reading the manifest of the saved image");
      }
      if (got == 0) {
        return text;
      }
      text.append(buffer.data(), static_cast<std::size_t>(got));
    }
  }
  FERRY_CHECK(saved->end());
  return fail(Kind::corrupt, "Docker saved image {} without a manifest.json", name);
}

Result<void> copy_entry(archive* in, archive* out, archive_entry* entry) {
  if (archive_write_header(out, entry) != ARCHIVE_OK) {
    return archive_fail(out, "sending the saved image");
  }
  std::array<char, 262144> buffer{};
  for (;;) {
    const la_ssize_t got = archive_read_data(in, buffer.data(), buffer.size());
    if (got < 0) {
      return archive_fail(in, "reading the saved image");
    }
    if (got == 0) {
      return {};
    }
    if (archive_write_data(out, buffer.data(), static_cast<std::size_t>(got)) < 0) {
      return archive_fail(out, "sending the saved image");
    }
  }
}

}  // namespace

std::vector<std::string> chain_ids(const std::vector<std::string>& diff_ids) {
  std::vector<std::string> out;
  for (const std::string& diff_id : diff_ids) {
    out.push_back(out.empty() ? diff_id : sha256_of(out.back() + " " + diff_id));
  }
  return out;
}

Result<std::set<std::string>> present_chain_ids(Docker& docker) {
  FERRY_TRY(const std::string text, docker.api().get("/images/json?all=1"));
  FERRY_TRY(const Json list, parse_json(text, "Docker's list of images"));
  std::set<std::string> out;
  if (!list.is_array()) {
    return out;
  }
  for (const Json& item : list) {
    auto image = docker.image(json_text(item, "Id"));
    if (!image && image.error().kind == Kind::gone) {
      continue;  // removed since it was listed
    }
    FERRY_CHECK(image);
    out.merge([&] {
      const auto ids = chain_ids(image->diff_ids);
      return std::set<std::string>(ids.begin(), ids.end());
    }());
  }
  return out;
}

Result<std::set<std::string>> entries_to_leave_out(std::string_view manifest_json,
                                                   const std::vector<std::string>& diff_ids,
                                                   const std::set<std::string>& present) {
  FERRY_TRY(const Json manifest, parse_json(manifest_json, "the manifest of the saved image"));
  if (!manifest.is_array() || manifest.size() != 1) {
    return fail(Kind::corrupt, "the manifest of the saved image does not describe one image");
  }
  const std::vector<std::string> paths = json_texts(json_at(manifest.front(), "Layers"));
  if (paths.size() != diff_ids.size()) {
    return fail(Kind::corrupt, "the saved image has {} layers, but Docker says {}", paths.size(), diff_ids.size());
  }
  const std::vector<std::string> chains = chain_ids(diff_ids);
  // A layer that occurs twice is saved once and linked to, so its content stays if one place needs it.
  std::set<std::string> needed;
  for (std::size_t i = 0; i < paths.size(); ++i) {
    if (!present.contains(chains[i])) {
      needed.insert(diff_ids[i]);
    }
  }
  std::set<std::string> out;
  std::set<std::string> kept;
  for (std::size_t i = 0; i < paths.size(); ++i) {
    (needed.contains(diff_ids[i]) ? kept : out).insert(paths[i]);
  }
  for (const std::string& path : kept) {
    out.erase(path);
  }
  return out;
}

Result<ImageReport> export_image(Docker& docker, const std::string& name, const std::set<std::string>& present,
                                 int out_fd) {
  FERRY_TRY(const ImageInfo image, docker.image(name));
  // The manifest may come last, so the stream is read twice; the first reading stays on this host.
  FERRY_TRY(const std::string manifest, read_manifest(docker, name));
  FERRY_TRY(const auto left_out, entries_to_leave_out(manifest, image.diff_ids, present));

  FERRY_TRY(const auto saved, Saved::open(docker, name));
  FERRY_TRY(const Reader reader, open_tar(saved->fd()));
  const Writer writer(archive_write_new());
  archive_write_set_format_pax_restricted(writer.get());
  archive_write_set_bytes_in_last_block(writer.get(), 1);
  if (archive_write_open_fd(writer.get(), out_fd) != ARCHIVE_OK) {
    return archive_fail(writer.get(), "sending the saved image");
  }
  for (;;) {
    archive_entry* entry = nullptr;
    const int got = archive_read_next_header(reader.get(), &entry);
    if (got == ARCHIVE_EOF) {
      break;
    }
    if (got != ARCHIVE_OK) {
      return archive_fail(reader.get(), "reading the saved image");
    }
    const char* path = archive_entry_pathname(entry);
    if (path == nullptr || !left_out.contains(path) || archive_entry_filetype(entry) != AE_IFREG) {
      FERRY_CHECK(copy_entry(reader.get(), writer.get(), entry));
    }
  }
  FERRY_CHECK(saved->end());
  if (archive_write_close(writer.get()) != ARCHIVE_OK) {
    return archive_fail(writer.get(), "sending the saved image");
  }
  return ImageReport{.layers = image.diff_ids.size(),
                     .layers_sent = image.diff_ids.size() - left_out.size(),
                     .bytes = static_cast<std::uint64_t>(archive_filter_bytes(writer.get(), -1))};
}

Result<void> load_image(Docker& docker, int in_fd) {
  const auto source = [&](std::span<std::byte> room) -> Result<std::size_t> {
    for (;;) {
      const ssize_t got = ::read(in_fd, room.data(), room.size());
      if (got >= 0) {
        return static_cast<std::size_t>(got);
      }
      if (errno != EINTR) {
        return sys_fail("read(image stream)");
      }
    }
  };
  FERRY_TRY(const std::string answer, docker.api().upload("/images/load?quiet=1", "application/x-tar", source));
  // The status is sent before the work is done, so a failure arrives as one of several JSON lines.
  std::size_t start = 0;
  while (start < answer.size()) {
    const std::size_t end = std::min(answer.find('\n', start), answer.size());
    const Json line = Json::parse(answer.substr(start, end - start), nullptr, false);
    if (const std::string error = json_text(line, "error"); !error.empty()) {
      return fail(Kind::os, "Docker could not load the image: {}", error);
    }
    start = end + 1;
  }
  return {};
}

}  // namespace ferry::container

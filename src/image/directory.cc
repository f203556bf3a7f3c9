// Image sets in directories.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <future>
#include <span>

#include "image/proto/inventory.pb.h"
#include "image/set.h"
#include "image/version.h"
#include "sys/file.h"

namespace ferry::image {
namespace {

// An image is read as a whole; more than this cannot be one that a checkpoint wrote on purpose.
constexpr std::uint64_t kMaxFileBytes = 8ULL << 30;
constexpr std::size_t kWorthAThread = 100;  // files

Result<std::string> read_image(int directory, const std::string& file) {
  // O_NONBLOCK: a FIFO of that name must not keep us waiting.
  FERRY_TRY(const UniqueFd fd, sys::open_at(directory, file, O_RDONLY | O_NOFOLLOW | O_NONBLOCK));
  FERRY_TRY(const auto stat, sys::stat_fd(fd.get(), file));
  if (!S_ISREG(stat.st_mode)) {
    return fail(Kind::corrupt, "{} is not a regular file", file);
  }
  if (static_cast<std::uint64_t>(stat.st_size) > kMaxFileBytes) {
    return fail(Kind::corrupt, "{} has {} bytes, more than any image", file, stat.st_size);
  }
  return sys::read_all(fd.get(), file);
}

Result<void> write_image(int directory, const std::string& file, std::string_view bytes) {
  constexpr int kNew = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW;
  auto fd = sys::open_at(directory, file, kNew, 0644);
  if (!fd.has_value() && ::unlinkat(directory, file.c_str(), 0) == 0) {
    fd = sys::open_at(directory, file, kNew, 0644);
  }
  FERRY_TRY(const UniqueFd file_of_image, std::move(fd));
  return sys::write_all(file_of_image.get(), bytes.data(), bytes.size(), file);
}

void add_all(const Set& from, Set& to) {
  for (const Name& name : from.names()) {
    to.touch(name);
    if (const std::string* raw = from.raw(name); raw != nullptr && !raw->empty()) {
      to.set_raw(name, *raw);
    }
    for (const Entry& entry : from.entries(name)) {
      to.add(name, entry.message, entry.extra);
    }
  }
}

}  // namespace

Result<Set> load(int directory, Accept accept) {
  FERRY_TRY(auto files, sys::list_directory(directory, "."));
  std::sort(files.begin(), files.end());

  Set set;
  const Name inventory{Type::inventory, 0};
  if (!std::binary_search(files.begin(), files.end(), file_name(inventory))) {
    return fail(Kind::corrupt, "{} is missing: not a complete image directory", file_name(inventory));
  }
  FERRY_TRY(auto first, read_image(directory, file_name(inventory)));
  FERRY_CHECK(decode_file(set, inventory, std::move(first), 2));
  FERRY_TRY(const auto version, check_version(set, accept));

  std::erase_if(files, [&](const std::string& file) {
    return !file.ends_with(".img") || file.starts_with("pages-") || file == file_name(inventory);
  });
  const auto read = [directory, version](std::span<const std::string> some, Set& into) -> Result<void> {
    for (const std::string& file : some) {
      const auto name = parse_file_name(file);
      if (!name) {
        return fail(Kind::unsupported, "{} is no image that ferry knows; it may come from a plugin or an old CRIU",
                    file);
      }
      FERRY_TRY(auto bytes, read_image(directory, file));
      FERRY_CHECK(decode_file(into, *name, std::move(bytes), version));
    }
    return {};
  };
  const std::span<const std::string> all(files);
  if (files.size() < kWorthAThread) {
    FERRY_CHECK(read(all, set));
    return set;
  }
  Set others;  // a file for each of many threads
  auto half = std::async(std::launch::async, [&] { return read(all.subspan(all.size() / 2), others); });
  const auto done = read(all.first(all.size() / 2), set);
  FERRY_CHECK(half.get());
  FERRY_CHECK(done);
  add_all(others, set);
  return set;
}

Result<void> save(const Set& set, int directory) {
  const Name inventory{Type::inventory, 0};
  FERRY_CHECK(check_version(set, Accept::pre_dump));
  const auto last = file_name(inventory);
  if (::unlinkat(directory, last.c_str(), 0) != 0 && errno != ENOENT) {
    return sys_fail(fmt::format("unlinkat({})", last));
  }
  std::vector<Name> names = set.names();
  std::erase(names, inventory);
  const auto write = [&set, directory](std::span<const Name> some) -> Result<void> {
    for (const Name name : some) {
      FERRY_TRY(const auto bytes, encode_file(set, name));
      FERRY_CHECK(write_image(directory, file_name(name), bytes));
    }
    return {};
  };
  if (names.size() < kWorthAThread) {
    FERRY_CHECK(write(names));
  } else {  // a file for each of many threads
    const std::span<const Name> all(names);
    auto half = std::async(std::launch::async, write, all.first(all.size() / 2));
    auto other = write(all.subspan(all.size() / 2));
    FERRY_CHECK(half.get());
    FERRY_CHECK(std::move(other));
  }
  FERRY_TRY(const auto bytes, encode_file(set, inventory));
  return write_image(directory, last, bytes);
}

}  // namespace ferry::image

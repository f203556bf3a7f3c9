#include "programs/ferry/image_check.h"

#include <fcntl.h>

#include "base/unique_fd.h"
#include "image/set.h"
#include "image/verify.h"

namespace ferry::program {

Result<std::vector<std::string>> image_faults(const std::string& directory) {
  const UniqueFd fd(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd) {
    return sys_fail(fmt::format("open({})", directory));
  }
  FERRY_TRY(const image::Set set, image::load(fd.get()));
  return image::verify(set, fd.get());
}

Result<void> verify_images(const std::string& directory) {
  FERRY_TRY(const auto faults, image_faults(directory));
  if (faults.empty()) {
    return {};
  }
  if (faults.size() == 1) {
    return fail(Kind::corrupt, "{}", faults.front());
  }
  return fail(Kind::corrupt, "{} (and {} more: ferry image verify {})", faults.front(), faults.size() - 1, directory);
}

}  // namespace ferry::program

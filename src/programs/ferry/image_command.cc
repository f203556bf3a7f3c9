// ferry image show|verify DIR
#include <fcntl.h>

#include <CLI/CLI.hpp>
#include <memory>

#include "base/unique_fd.h"
#include "image/json.h"
#include "image/set.h"
#include "programs/ferry/command.h"
#include "programs/ferry/image_check.h"

namespace ferry::program {
namespace {

Result<void> show(const std::string& directory) {
  const UniqueFd fd(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd) {
    return sys_fail(fmt::format("open({})", directory));
  }
  FERRY_TRY(const image::Set set, image::load(fd.get()).during("reading {}", directory));
  FERRY_TRY(const std::string text, image::show(set));
  fmt::print("{}\n", text);
  return {};
}

Result<void> verify(const std::string& directory) {
  FERRY_TRY(const auto faults, image_faults(directory).during("reading {}", directory));
  for (const std::string& fault : faults) {
    fmt::print("{}\n", fault);
  }
  if (!faults.empty()) {
    return fail(Kind::corrupt, "{} has {} fault(s)", directory, faults.size());
  }
  fmt::print("{} is complete\n", directory);
  return {};
}

}  // namespace

void add_image(CLI::App& root, Commands& commands) {
  CLI::App* group = root.add_subcommand("image", "Look into the image set of a checkpoint");
  group->require_subcommand(1);
  const auto directory = std::make_shared<std::string>();
  CLI::App* shown = group->add_subcommand("show", "Print an image set as JSON");
  shown->add_option("DIR", *directory, "Directory of the image set")->required();
  commands.push_back({shown, false, [directory] { return show(*directory); }});
  CLI::App* verified = group->add_subcommand("verify", "Say what is missing or does not fit together");
  verified->add_option("DIR", *directory, "Directory of the image set")->required();
  commands.push_back({verified, false, [directory] { return verify(*directory); }});
}

}  // namespace ferry::program

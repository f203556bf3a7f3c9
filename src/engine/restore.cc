#include "engine/restore.h"

#include <chrono>

#include "engine/limits.h"
#include "engine/restore_story.h"

namespace ferry::engine {
namespace {

using Clock = std::chrono::steady_clock;

std::uint64_t micros(Clock::duration d) {
  return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(d).count());
}

}  // namespace

Result<RestoreReport> restore(const RestoreOptions& options, Listener& listener) {
  const auto begin = Clock::now();
  RestoreReport report;
  RestoreStory story(options, listener);
  FERRY_CHECK(raise_descriptor_limit());
  FERRY_TRY(image::Set set, image::load(options.images_dir));
  FERRY_CHECK(story.read(std::move(set)));
  FERRY_CHECK(story.tell(Stage::pre_restore));
  FERRY_CHECK(story.make_root_world(-1));
  FERRY_CHECK(story.grow());
  report.forking_us = micros(Clock::now() - begin);
  FERRY_CHECK(story.dress(options.images_dir));
  FERRY_CHECK(story.tell(Stage::post_restore, true));
  FERRY_CHECK(story.finish_threads());
  FERRY_CHECK(story.let_go());
  report.root = story.context().root().pid;
  report.pages_restored = story.pages_restored();
  report.restore_us = micros(Clock::now() - begin);
  return report;
}

}  // namespace ferry::engine

#include "engine/restore.h"

#include <fcntl.h>

#include <chrono>
#include <optional>

#include "base/log.h"
#include "engine/limits.h"
#include "engine/reference.h"
#include "engine/reference_file.h"
#include "engine/restore_story.h"
#include "engine/twin.h"
#include "image/dedup.h"
#include "image/proto/inventory.pb.h"
#include "image/proto/ns.pb.h"
#include "state/files/mapped_modes.h"
#include "sys/file.h"

namespace ferry::engine {
namespace {

using Clock = std::chrono::steady_clock;

std::uint64_t micros(Clock::duration d) {
  return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(d).count());
}

// Clones get the name of their own container; connections that were closed stay closed.
void adapt(image::Set& set, RestoreOptions& options, const std::optional<std::string>& hostname) {
  if (const auto inventory = set.one<pb::InventoryEntry>({image::Type::inventory, 0}); inventory.has_value()) {
    options.tcp_close = options.tcp_close || (*inventory)->tcp_close();
  }
  if (!hostname) {
    return;
  }
  for (const image::Name& name : set.names(image::Type::utsns)) {
    for (const image::Entry& entry : set.entries(name)) {
      static_cast<pb::UtsnsEntry&>(*entry.message).set_nodename(*hostname);
    }
  }
}

Result<RestoreReport> restore_from(RestoreOptions options, Listener& listener,
                                   const std::optional<std::string>& hostname) {
  const auto begin = Clock::now();
  RestoreReport report;
  FERRY_TRY(image::Set set, image::load(options.images_dir));
  adapt(set, options, hostname);
  state::widen_mapped_files(set);
  RestoreStory story(options, listener);
  FERRY_CHECK(raise_descriptor_limit());
  FERRY_CHECK(story.read(std::move(set)));
  FERRY_CHECK(story.tell(Stage::pre_restore));
  FERRY_CHECK(story.make_root_world(-1));
  FERRY_CHECK(story.grow(options.images_dir));
  report.forking_us = micros(Clock::now() - begin);
  FERRY_CHECK(story.dress(options.images_dir));
  FERRY_CHECK(story.tell(Stage::post_restore, true));
  FERRY_CHECK(story.finish_threads());
  FERRY_CHECK(story.let_go());
  FERRY_CHECK(story.tell_daemon());
  report.root = story.context().root().pid;
  report.pages_restored = story.pages_restored();
  report.restore_us = micros(Clock::now() - begin);
  return report;
}

// The images are with a receiver on this host, which will also own the tree.
Result<RestoreReport> restore_for_receiver(const RestoreOptions& options, Listener& listener, const std::string& path) {
  FERRY_TRY(auto reference, fetch_reference(path));
  const auto skeleton = make_skeleton(reference.set(), options, listener, reference.receiver());
  FERRY_CHECK(reference.answer(skeleton));
  if (!skeleton.has_value()) {
    return tl::unexpected<Error>(skeleton.error());
  }
  RestoreReport report;
  report.root = skeleton->root;
  return report;
}

}  // namespace

Result<RestoreReport> restore(const RestoreOptions& options, Listener& listener) {
  if (options.auto_dedup && !options.lazy_pages_socket.empty()) {
    return fail(Kind::invalid,
                "--auto-dedup with --lazy-pages: pages would be taken out of the images before they were read");
  }
  FERRY_TRY(const auto reference, read_reference(options.images_dir));
  if (!reference) {
    auto restored = restore_from(options, listener, std::nullopt);
    if (restored.has_value() && options.auto_dedup) {
      // The tree runs; the room is worth a warning.
      if (const auto punched = image::punch_all(options.images_dir); !punched.has_value()) {
        log::warning("the images keep their room: {}", punched.error().message());
      }
    }
    return restored;
  }
  Result<RestoreReport> report = [&]() -> Result<RestoreReport> {
    if (!reference->receiver.empty()) {
      return restore_for_receiver(options, listener, reference->receiver);
    }
    FERRY_TRY(const UniqueFd images, sys::open(reference->images, O_RDONLY | O_DIRECTORY));
    RestoreOptions there = options;
    there.images_dir = images.get();
    if (!reference->lazy_pages.empty()) {
      there.lazy_pages_socket = reference->lazy_pages;
    }
    there.tcp_close = options.tcp_close || reference->tcp_close;
    return restore_from(std::move(there), listener, reference->hostname);
  }();
  if (report.has_value()) {
    discard_reference(options.images_dir);
  }
  return report;
}

}  // namespace ferry::engine

#include "state/binfmt_misc/binfmt_misc.h"

#include <fcntl.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "image/type.h"
#include "state/leftovers.h"
#include "state/mount/mount.h"
#include "state/nested/nested.h"
#include "sys/file.h"

namespace ferry::state::binfmt_misc {
namespace {

const image::Name kImage{image::Type::binfmt_misc};

bool is_own(const pb::MntEntry& entry) { return entry.fstype() == pb::FSTYPE_BINFMT_MISC && entry.ext_key().empty(); }

// Oldest first: of two handlers that fit the kernel takes the newer one, and shows it first.
Result<std::vector<pb::BinfmtMiscEntry>> handlers_in(int directory) {
  FERRY_TRY(const auto names, sys::list_directory(directory, "."));
  std::vector<pb::BinfmtMiscEntry> out;
  for (auto name = names.rbegin(); name != names.rend(); ++name) {
    if (*name != "register" && *name != "status") {
      FERRY_TRY(const std::string text, sys::read_file_at(directory, *name));
      FERRY_TRY(out.emplace_back(), parse(*name, text));
    }
  }
  return out;
}

bool alike(const pb::BinfmtMiscEntry& a, const pb::BinfmtMiscEntry& b) {
  return a.interpreter() == b.interpreter() && a.flags() == b.flags() && a.extension() == b.extension() &&
         a.magic() == b.magic() && a.mask() == b.mask() && a.offset() == b.offset();
}

Result<void> register_in(const std::shared_ptr<const UniqueFd>& place, const pb::BinfmtMiscEntry& entry,
                         Leftovers& leftovers) {
  const int directory = place->get();
  FERRY_TRY(const std::string text, registration(entry));
  if (const auto there = sys::read_file_at(directory, entry.name()); there.has_value()) {
    FERRY_TRY(const auto handler, parse(entry.name(), *there));
    if (!alike(handler, entry)) {
      return fail(Kind::unsupported, "this host has another handler {} of binfmt_misc, for {}; remove one of them",
                  entry.name(), handler.interpreter());
    }
    return {};
  }
  FERRY_CHECK(
      sys::write_file_at(directory, "register", text).during("registering handler {} of binfmt_misc", entry.name()));
  // Handlers of the host would stay.
  leftovers.add([place, name = entry.name()] { (void)sys::write_file_at(place->get(), name, "-1"); });
  return entry.enabled() ? Result<void>() : sys::write_file_at(directory, entry.name(), "0");
}

}  // namespace

Result<void> collect(DumpContext& context, const std::vector<mount::View>& views) {
  std::optional<std::uint32_t> done;
  for (const mount::View& view : views) {
    for (const image::Entry& item : context.set.entries({image::Type::mountpoints, view.ns.id})) {
      auto& entry = *static_cast<pb::MntEntry*>(item.message.get());
      if (!is_own(entry) || done == entry.root_dev()) {
        continue;
      }
      if (done.has_value()) {
        return fail(Kind::unsupported, "{}: handlers of binfmt_misc of several user namespaces cannot be carried",
                    entry.mountpoint());
      }
      const auto look = [&]() -> Result<std::vector<pb::BinfmtMiscEntry>> {
        FERRY_TRY(const UniqueFd directory, sys::open(entry.mountpoint(), O_PATH | O_DIRECTORY));
        FERRY_TRY(const std::uint64_t visible, mount::visible_mount_id(directory.get(), ""));
        if (visible != entry.mnt_id()) {
          return fail(Kind::unsupported,
                      "something is mounted over {}, whose handlers (binfmt_misc) could not be seen; unmount it",
                      entry.mountpoint());
        }
        // Without a user namespace of its own it is the host's switch.
        if (!tree_namespaces(context, NsKind::user).empty()) {
          FERRY_TRY(const std::string status, sys::read_file_at(directory.get(), "status"));
          entry.set_ferry_switched_off(status == "disabled\n");
        }
        return handlers_in(directory.get());
      };
      FERRY_TRY(auto handlers, view.inside->get<std::vector<pb::BinfmtMiscEntry>>(look));
      for (pb::BinfmtMiscEntry& handler : handlers) {
        context.set.add(kImage, std::move(handler));
      }
      done = entry.root_dev();
    }
  }
  return {};
}

Result<void> restore(RestoreContext& context) {
  const auto handlers = context.set.list<pb::BinfmtMiscEntry>(kImage);
  for (const image::Name& name : context.set.names(image::Type::mountpoints)) {
    const auto entries = context.set.list<pb::MntEntry>(name);
    const auto own = std::find_if(entries.begin(), entries.end(), [](const auto* entry) { return is_own(*entry); });
    if (own == entries.end()) {
      continue;
    }
    const pb::MntEntry& entry = **own;
    FERRY_TRY(Inside* const inside, context.nested.inside(context, NsKind::mnt, static_cast<std::uint32_t>(name.id)));
    return inside->run([&]() -> Result<void> {
      FERRY_TRY(UniqueFd opened, sys::open(entry.mountpoint(), O_PATH | O_DIRECTORY));
      const auto place = std::make_shared<const UniqueFd>(std::move(opened));
      for (const pb::BinfmtMiscEntry* handler : handlers) {
        FERRY_CHECK(register_in(place, *handler, context.leftovers));
      }
      return entry.ferry_switched_off() ? sys::write_file_at(place->get(), "status", "0") : Result<void>();
    });
  }
  return {};
}

Result<void> check_same(const image::Set& before, const image::Set& now) {
  const auto were = before.list<pb::BinfmtMiscEntry>(kImage);
  const auto are = now.list<pb::BinfmtMiscEntry>(kImage);
  const bool same = std::equal(were.begin(), were.end(), are.begin(), are.end(), [](const auto* a, const auto* b) {
    return a->name() == b->name() && a->enabled() == b->enabled() && alike(*a, *b);
  });
  return same ? Result<void>()
              : fail(Kind::unsupported,
                     "handlers of binfmt_misc changed while the container was being moved; move it again");
}

}  // namespace ferry::state::binfmt_misc

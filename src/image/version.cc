#include "image/version.h"

#include "image/proto/inventory.pb.h"

namespace ferry::image {

Result<std::uint32_t> check_version(const Set& set, Accept accept) {
  FERRY_TRY(const auto* inventory, set.one<pb::InventoryEntry>({Type::inventory, 0}));
  const std::uint32_t version = inventory->img_version();
  if (version == 0 && accept != Accept::pre_dump) {
    return fail(Kind::unsupported, "inventory.img: this is the set of a pre-dump, which has pages but no processes");
  }
  if (version > 2) {
    return fail(Kind::unsupported, "inventory.img: image version {} is not one that ferry reads (1 and 2 are)",
                version);
  }
  return version;
}

}  // namespace ferry::image

// How far the clocks of a time namespace of a stopped tree are ahead.
#pragma once

#include "state/dump.h"
#include "state/timens/clocks.h"

namespace ferry::state::timens {

// Of the namespace with this number in the set, against the first time namespace.
Result<Clocks> offsets_of(DumpContext& context, std::uint32_t ns);

}  // namespace ferry::state::timens

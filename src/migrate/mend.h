// Connections that a killed ferry left in repair mode, which is a property of the socket and survives it: their
// program could neither send nor receive.
#pragma once

#include <string>

#include "base/error.h"

namespace ferry::migrate {

enum class Mend {
  go_on,  // the kernel has all that belongs to them
  reset,  // what they had still to send is lost: to go on would leave a hole in their stream
};

// Of all processes in the cgroup, which should be frozen.  The value is the number of connections.
Result<int> mend_connections(const std::string& cgroup, Mend how);

}  // namespace ferry::migrate

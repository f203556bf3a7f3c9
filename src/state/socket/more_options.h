// Socket options that the images of CRIU have no field for.
//
// One table names them all; an option is kept when its value is not that of a new socket of the same kind,
// and set again as it was read.  A new option of the kernel is a line in the table.
#pragma once

#include <google/protobuf/repeated_ptr_field.h>

#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "base/error.h"
#include "image/proto/sockets.pb.h"
#include "state/nsids/networks.h"

namespace ferry::state::socket {

using MoreOptions = google::protobuf::RepeatedPtrField<pb::FerrySocketOption>;

class MoreOptionsReader {
 public:
  // Looks at a new socket of the same kind in the same namespace, whose parameters (sysctl net.*) it begins with and
  // which the values are compared with; once for each kind.
  Result<void> prepare(int fd, const Networks::Place& network, const std::string& subject);
  // `connected`: a TCP connection, of which some options show what the kernel has made of them.
  // Of a kind that was prepared; may be called by several threads.
  Result<void> collect(int fd, const Networks::Place& network, bool connected, MoreOptions& out) const;

 private:
  using Sort = std::tuple<std::uint32_t, int, int, int>;  // network namespace, family, type, protocol
  static Result<Sort> sort_of(int fd, const Networks::Place& network);
  std::map<Sort, std::vector<std::string>> fresh_;  // by position in the table
};

// `early`: those that matter to bind(2) and connect(2), or the others.
// Errors: the kernel's, naming the option.
Result<void> restore_more(int fd, const MoreOptions& options, bool early, const std::string& subject);

}  // namespace ferry::state::socket

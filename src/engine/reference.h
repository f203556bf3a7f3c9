// A restore whose images come from a receiver on this host instead of a directory.
//
// The receiver (ferry, which will own the tree) listens on a Unix socket of root's; the `criu` that the
// container runtime calls connects to it.  What goes over the connection:
//   receiver to criu   u64 length, a set in its stream form; with the first byte a pidfd of the receiver
//                      (unix(7), SCM_RIGHTS), by which the skeleton notices its death
//   criu to receiver   u64 length, then 's' and the skeleton (twin.h), or 'e' and a sentence; after a skeleton a byte
//                      with a descriptor for each of its namespaces
// Numbers are little-endian.
#pragma once

#include <chrono>
#include <string>

#include "base/error.h"
#include "base/unique_fd.h"
#include "engine/twin.h"
#include "image/set.h"

namespace ferry::engine {

// The receiver's side.  The socket's file goes away with the object.
class ReferenceServer {
 public:
  // Errors: os, if the path is taken or too long for sun_path.
  static Result<ReferenceServer> listen(const std::string& path);
  ReferenceServer(ReferenceServer&& other) noexcept;
  ReferenceServer& operator=(ReferenceServer&&) = delete;
  ~ReferenceServer();

  // Waits for criu, gives it the set, waits for its skeleton.  Gives up when `give_up` becomes readable
  // (the runtime has failed) or the limit is over.  Peers that are not root are turned away.
  // Errors: criu's own sentence; gone, if nobody came.
  Result<Skeleton> serve(const std::string& encoded_set, int give_up, std::chrono::seconds limit);

 private:
  ReferenceServer(UniqueFd socket, std::string path) : socket_(std::move(socket)), path_(std::move(path)) {}
  UniqueFd socket_;
  std::string path_;
};

// criu's side.
class FetchedReference {
 public:
  [[nodiscard]] const image::Set& set() const { return set_; }
  [[nodiscard]] int receiver() const { return receiver_.get(); }  // pidfd, for make_skeleton
  // The last word: the skeleton, or why there is none.
  Result<void> answer(const Result<Skeleton>& skeleton);

 private:
  friend Result<FetchedReference> fetch_reference(const std::string& path);
  UniqueFd socket_;
  UniqueFd receiver_;
  image::Set set_;
};
// Errors: gone, if no receiver listens there any more; corrupt.
Result<FetchedReference> fetch_reference(const std::string& path);

}  // namespace ferry::engine

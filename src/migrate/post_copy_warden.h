// A process that holds the userfaultfds of a tree whose memory has not all come, besides the one that serves them.
//
// The kernel gives zeros to a program whose userfaultfd nobody holds any more (userfaultfd(2)): were the receiver
// killed, the tree would run on with memory that was never its own.  As long as the warden holds a second descriptor,
// who touches a missing page sleeps; and the warden ends the tree before it lets go.
#pragma once

#include <sys/types.h>

#include <string>

#include "base/error.h"
#include "base/unique_fd.h"

namespace ferry::migrate {

class PostCopyWarden {
 public:
  // `freeze_cgroup`: of the tree, which is killed if this process ends without having dismissed the warden.
  static Result<PostCopyWarden> post(const std::string& freeze_cgroup);
  PostCopyWarden(PostCopyWarden&& other) noexcept;
  PostCopyWarden& operator=(PostCopyWarden&&) = delete;
  ~PostCopyWarden();  // dismisses it

  // Known under its number here until it is dropped.
  Result<void> hold(int uffd);
  Result<void> drop(int number);
  Result<void> drop_all();

 private:
  PostCopyWarden(pid_t child, UniqueFd socket) : child_(child), socket_(std::move(socket)) {}
  Result<void> send(int word, int uffd);
  pid_t child_;
  UniqueFd socket_;
};

}  // namespace ferry::migrate

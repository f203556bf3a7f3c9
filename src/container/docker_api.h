// The Docker Engine API over its Unix socket: requests, answers, streams.  Knows HTTP, not containers.
//
// Errors of every call: Docker's own "message" in the text; gone for 404, denied for 403 and for a
// socket we may not open, invalid for 400 and 409, os for the rest and for a daemon that is not there.
// Threads: one object belongs to one thread at a time.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "base/error.h"

namespace ferry::container {

// "unix:///run/docker.sock" as a path; empty means Docker's default.  Errors: unsupported for a daemon
// that is not on this host (tcp://, ssh://, …): ferry works on the processes themselves.
Result<std::string> socket_of_docker_host(std::string_view docker_host);

// Text made safe as one part of a URL's path or query (RFC 3986, section 2.3).
std::string url_escape(std::string_view text);

// The version to ask for, given what /version answered ("1.41", …).  Errors: unsupported.
Result<std::string> negotiate_version(std::string_view daemon_version, std::string_view daemon_minimum);

class DockerApi {
 public:
  // Takes a piece of a download; an error ends the transfer and is returned from it.
  using Sink = std::function<Result<void>(std::span<const std::byte>)>;
  // Fills a piece of an upload and says how much; 0 ends it.
  using Source = std::function<Result<std::size_t>(std::span<std::byte>)>;

  // Finds the daemon and agrees on a version.
  static Result<DockerApi> connect(const std::string& socket_path);

  DockerApi(DockerApi&&) noexcept;
  DockerApi& operator=(DockerApi&&) noexcept;
  ~DockerApi();

  // `path` starts after the version: "/containers/json".  The answer is the body.
  Result<std::string> get(const std::string& path);
  Result<std::string> post(const std::string& path, const std::string& json_body = {},
                           std::chrono::seconds limit = std::chrono::seconds(60));
  Result<void> remove(const std::string& path);
  // Streams are limited by silence (five minutes without a byte), not by time.
  Result<std::uint64_t> download(const std::string& path, const Sink& sink);
  Result<std::string> upload(const std::string& path, const std::string& content_type, const Source& source);

  [[nodiscard]] const std::string& socket_path() const;
  [[nodiscard]] const std::string& version() const;

 private:
  struct Session;
  explicit DockerApi(std::unique_ptr<Session> session);
  std::unique_ptr<Session> session_;
};

}  // namespace ferry::container

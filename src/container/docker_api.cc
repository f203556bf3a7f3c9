#include "container/docker_api.h"

#include <curl/curl.h>

#include <cerrno>
#include <cstdio>
#include <optional>
#include <utility>

#include "container/json.h"

namespace ferry::container {
namespace {

constexpr int kOurMinor = 41;  // Docker 20.10, the oldest whose checkpoints we know
constexpr long kConnectSeconds = 5;
constexpr long kSilenceSeconds = 300;

// "1.41" as 41; -1 if it is anything else, since Docker has only ever had major version 1.
int minor_of(std::string_view version) {
  if (!version.starts_with("1.") || version.size() < 3 || version.size() > 6) {
    return -1;
  }
  int minor = 0;
  for (const char c : version.substr(2)) {
    if (c < '0' || c > '9') {
      return -1;
    }
    minor = minor * 10 + (c - '0');
  }
  return minor;
}

struct HeaderList {
  curl_slist* list = nullptr;
  ~HeaderList() { curl_slist_free_all(list); }
  void add(const std::string& line) { list = curl_slist_append(list, line.c_str()); }
};

struct Transfer {
  CURL* curl = nullptr;
  std::string body;  // the answer, or the error's JSON of a download
  const DockerApi::Sink* sink = nullptr;
  const DockerApi::Source* source = nullptr;
  std::optional<Error> broken;  // what our own sink or source said
  std::uint64_t received = 0;
};

bool is_success(CURL* curl) {
  long status = 0;
  curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
  return status >= 200 && status < 300;
}

std::size_t on_data(char* data, std::size_t size, std::size_t count, void* user) {
  auto& transfer = *static_cast<Transfer*>(user);
  const std::size_t length = size * count;
  if (transfer.sink == nullptr || !is_success(transfer.curl)) {
    transfer.body.append(data, length);
    return length;
  }
  if (auto taken = (*transfer.sink)(std::as_bytes(std::span(data, length))); !taken) {
    transfer.broken = std::move(taken).error();
    return CURL_WRITEFUNC_ERROR;
  }
  transfer.received += length;
  return length;
}

std::size_t on_read(char* data, std::size_t size, std::size_t count, void* user) {
  auto& transfer = *static_cast<Transfer*>(user);
  auto given = (*transfer.source)(std::as_writable_bytes(std::span(data, size * count)));
  if (!given) {
    transfer.broken = std::move(given).error();
    return CURL_READFUNC_ABORT;
  }
  return *given;
}

Kind kind_of_status(long status) {
  switch (status) {
    case 404:
      return Kind::gone;
    case 401:
    case 403:
      return Kind::denied;
    case 400:
    case 409:
      return Kind::invalid;
    case 501:
      return Kind::unsupported;
    default:
      return Kind::os;
  }
}

}  // namespace

Result<std::string> socket_of_docker_host(std::string_view docker_host) {
  if (docker_host.empty()) {
    return std::string("/var/run/docker.sock");
  }
  if (docker_host.starts_with("unix://") && docker_host.size() > 7) {
    return std::string(docker_host.substr(7));
  }
  return fail(Kind::unsupported,
              "DOCKER_HOST is {}, but ferry has to run on the same host as the Docker daemon: use a unix:// address",
              docker_host);
}

std::string url_escape(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
                       c == '_' || c == '.' || c == '~';
    if (plain) {
      out += c;
    } else {
      out += fmt::format("%{:02X}", static_cast<unsigned char>(c));
    }
  }
  return out;
}

Result<std::string> negotiate_version(std::string_view daemon_version, std::string_view daemon_minimum) {
  const int newest = minor_of(daemon_version);
  const int oldest = minor_of(daemon_minimum);
  if (newest < 0) {
    return fail(Kind::corrupt, "the Docker daemon names its API version \"{}\"", daemon_version);
  }
  if (newest < kOurMinor) {
    return fail(Kind::unsupported, "the Docker daemon speaks API {}, ferry needs 1.{} (Docker 20.10) or newer",
                daemon_version, kOurMinor);
  }
  return fmt::format("1.{}", oldest > kOurMinor ? oldest : kOurMinor);
}

struct DockerApi::Session {
  CURL* curl = nullptr;
  std::string socket_path;
  std::string version;

  ~Session() { curl_easy_cleanup(curl); }

  Result<void> perform(Transfer& transfer, const char* method, const std::string& path) {
    transfer.curl = curl;
    const std::string prefix = version.empty() ? "" : "/v" + version;
    const std::string url = "http://docker" + prefix + path;
    char reason[CURL_ERROR_SIZE] = "";
    curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, reason);
    curl_easy_setopt(curl, CURLOPT_URL, url.c_str());
    curl_easy_setopt(curl, CURLOPT_UNIX_SOCKET_PATH, socket_path.c_str());
    curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, method);
    curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT, kConnectSeconds);
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_PROXY, "");  // http_proxy of the user must not catch a local socket
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, &on_data);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, &transfer);
    const CURLcode code = curl_easy_perform(curl);
    curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, nullptr);
    if (transfer.broken) {
      return tl::unexpected<Error>(std::move(*transfer.broken));
    }
    if (code != CURLE_OK) {
      return describe(code, method, path, reason);
    }
    long status = 0;
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
    // 304 is Docker's "it is so already" (start of a started, stop of a stopped container).
    if ((status >= 200 && status < 300) || status == 304) {
      return {};
    }
    const Json answer = Json::parse(transfer.body, nullptr, false);
    std::string message = json_text(answer, "message");
    if (message.empty()) {
      message = fmt::format("{} {} was answered with status {}", method, path, status);
    }
    return fail(kind_of_status(status), "Docker: {}", message);
  }

  Result<void> describe(CURLcode code, const char* method, const std::string& path, const char* reason) {
    if (code == CURLE_COULDNT_CONNECT) {
      long os_errno = 0;
      curl_easy_getinfo(curl, CURLINFO_OS_ERRNO, &os_errno);
      if (os_errno == EACCES || os_errno == EPERM) {
        return fail(Kind::denied, "may not open Docker's socket {}: run ferry as root", socket_path);
      }
      return fail(Kind::os, "no Docker daemon answers at {}: start it, or name its socket in DOCKER_HOST", socket_path);
    }
    if (code == CURLE_OPERATION_TIMEDOUT) {
      return fail(Kind::os, "the Docker daemon at {} did not answer {} {} in time", socket_path, method, path);
    }
    return fail(Kind::os, "{} {} at {}: {}", method, path, socket_path,
                reason[0] != '\0' ? reason : curl_easy_strerror(code));
  }
};

DockerApi::DockerApi(std::unique_ptr<Session> session) : session_(std::move(session)) {}
DockerApi::DockerApi(DockerApi&&) noexcept = default;
DockerApi& DockerApi::operator=(DockerApi&&) noexcept = default;
DockerApi::~DockerApi() = default;

Result<DockerApi> DockerApi::connect(const std::string& socket_path) {
  auto session = std::make_unique<Session>();
  session->socket_path = socket_path;
  session->curl = curl_easy_init();
  if (session->curl == nullptr) {
    return fail(Kind::os, "libcurl cannot be initialised");
  }
  DockerApi api(std::move(session));
  FERRY_TRY(const std::string text, api.get("/version"));
  FERRY_TRY(const Json answer, parse_json(text, "Docker's answer to /version"));
  FERRY_TRY(api.session_->version,
            negotiate_version(json_text(answer, "ApiVersion"), json_text(answer, "MinAPIVersion")));
  return api;
}

Result<std::string> DockerApi::get(const std::string& path) {
  curl_easy_reset(session_->curl);
  curl_easy_setopt(session_->curl, CURLOPT_TIMEOUT, 60L);
  Transfer transfer;
  FERRY_CHECK(session_->perform(transfer, "GET", path));
  return std::move(transfer.body);
}

Result<std::string> DockerApi::post(const std::string& path, const std::string& json_body, std::chrono::seconds limit) {
  curl_easy_reset(session_->curl);
  HeaderList headers;
  headers.add("Content-Type: application/json");
  headers.add("Expect:");
  curl_easy_setopt(session_->curl, CURLOPT_HTTPHEADER, headers.list);
  curl_easy_setopt(session_->curl, CURLOPT_POSTFIELDS, json_body.c_str());
  curl_easy_setopt(session_->curl, CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(json_body.size()));
  curl_easy_setopt(session_->curl, CURLOPT_TIMEOUT, static_cast<long>(limit.count()));
  Transfer transfer;
  FERRY_CHECK(session_->perform(transfer, "POST", path));
  return std::move(transfer.body);
}

Result<void> DockerApi::remove(const std::string& path) {
  curl_easy_reset(session_->curl);
  curl_easy_setopt(session_->curl, CURLOPT_TIMEOUT, 60L);
  Transfer transfer;
  return session_->perform(transfer, "DELETE", path);
}

Result<std::uint64_t> DockerApi::download(const std::string& path, const Sink& sink) {
  curl_easy_reset(session_->curl);
  curl_easy_setopt(session_->curl, CURLOPT_LOW_SPEED_LIMIT, 1L);
  curl_easy_setopt(session_->curl, CURLOPT_LOW_SPEED_TIME, kSilenceSeconds);
  curl_easy_setopt(session_->curl, CURLOPT_BUFFERSIZE, 512L * 1024);
  Transfer transfer;
  transfer.sink = &sink;
  FERRY_CHECK(session_->perform(transfer, "GET", path));
  return transfer.received;
}

Result<std::string> DockerApi::upload(const std::string& path, const std::string& content_type, const Source& source) {
  curl_easy_reset(session_->curl);
  HeaderList headers;
  headers.add("Content-Type: " + content_type);
  headers.add("Transfer-Encoding: chunked");
  headers.add("Expect:");
  curl_easy_setopt(session_->curl, CURLOPT_HTTPHEADER, headers.list);
  curl_easy_setopt(session_->curl, CURLOPT_POST, 1L);
  curl_easy_setopt(session_->curl, CURLOPT_UPLOAD_BUFFERSIZE, 512L * 1024);
  curl_easy_setopt(session_->curl, CURLOPT_LOW_SPEED_LIMIT, 1L);
  curl_easy_setopt(session_->curl, CURLOPT_LOW_SPEED_TIME, kSilenceSeconds);
  Transfer transfer;
  transfer.source = &source;
  curl_easy_setopt(session_->curl, CURLOPT_READFUNCTION, &on_read);
  curl_easy_setopt(session_->curl, CURLOPT_READDATA, &transfer);
  FERRY_CHECK(session_->perform(transfer, "POST", path));
  return std::move(transfer.body);
}

const std::string& DockerApi::socket_path() const { return session_->socket_path; }
const std::string& DockerApi::version() const { return session_->version; }

}  // namespace ferry::container

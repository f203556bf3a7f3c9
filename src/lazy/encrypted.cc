#include "lazy/encrypted.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <memory>
#include <span>

namespace ferry::lazy {
namespace {

template <auto Free>
struct Freed {
  template <class T>
  void operator()(T* object) const {
    Free(object);
  }
};
using Context = std::unique_ptr<SSL_CTX, Freed<SSL_CTX_free>>;
using Session = std::unique_ptr<SSL, Freed<SSL_free>>;

std::string reason() {
  const unsigned long code = ERR_get_error();
  const char* text = ERR_reason_error_string(code);
  ERR_clear_error();
  return text == nullptr ? "unknown reason" : text;
}

Result<Context> context_of(const TlsFiles& files) {
  Context context(SSL_CTX_new(TLS_method()));
  if (context == nullptr) {
    return fail(Kind::os, "TLS cannot be prepared: {}", reason());
  }
  SSL_CTX_set_min_proto_version(context.get(), TLS1_2_VERSION);
  SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  // A ticket for a next session is a record without data, which would make SSL_read(3) wait for another one.
  SSL_CTX_set_num_tickets(context.get(), 0);
  SSL_CTX_clear_mode(context.get(), SSL_MODE_AUTO_RETRY);
  if (SSL_CTX_load_verify_file(context.get(), files.authority.c_str()) != 1) {
    return fail(Kind::invalid, "{} holds no certificates of an authority: {}", files.authority, reason());
  }
  if (!files.revocations.empty()) {
    X509_STORE* store = SSL_CTX_get_cert_store(context.get());
    X509_LOOKUP* lookup = X509_STORE_add_lookup(store, X509_LOOKUP_file());
    if (lookup == nullptr || X509_load_crl_file(lookup, files.revocations.c_str(), X509_FILETYPE_PEM) < 1) {
      return fail(Kind::invalid, "{} holds no list of revoked certificates: {}", files.revocations, reason());
    }
    X509_STORE_set_flags(store, X509_V_FLAG_CRL_CHECK);
  }
  if (SSL_CTX_use_certificate_chain_file(context.get(), files.certificate.c_str()) != 1) {
    return fail(Kind::invalid, "{} holds no certificate: {}", files.certificate, reason());
  }
  if (SSL_CTX_use_PrivateKey_file(context.get(), files.key.c_str(), SSL_FILETYPE_PEM) != 1 ||
      SSL_CTX_check_private_key(context.get()) != 1) {
    return fail(Kind::invalid, "{} holds no key for the certificate {}: {}", files.key, files.certificate, reason());
  }
  return context;
}

// By its name, an address among its alternative names, or the common name that says the address.
bool is_for(SSL* session, const std::string& address) {
  X509* certificate = SSL_get0_peer_certificate(session);
  return certificate != nullptr && (X509_check_host(certificate, address.c_str(), address.size(), 0, nullptr) == 1 ||
                                    X509_check_ip_asc(certificate, address.c_str(), 0) == 1);
}

bool write_whole(int fd, std::span<const char> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) {
      continue;
    }
    if (n <= 0) {
      return false;
    }
    bytes = bytes.subspan(static_cast<std::size_t>(n));
  }
  return true;
}

// Until either side has ended; what it had sent is passed on before.
void pass_on(SSL* session, int socket, int plain) {
  std::array<char, SSL3_RT_MAX_PLAIN_LENGTH> buffer{};
  for (;;) {
    std::array<pollfd, 2> ready{pollfd{socket, POLLIN, 0}, pollfd{plain, POLLIN, 0}};
    const bool pending = SSL_has_pending(session) == 1;
    if (::poll(ready.data(), ready.size(), pending ? 0 : -1) < 0 && errno != EINTR) {
      return;
    }
    if (pending || ready[0].revents != 0) {
      const int n = SSL_read(session, buffer.data(), static_cast<int>(buffer.size()));
      if (n > 0 ? !write_whole(plain, std::span(buffer).first(static_cast<std::size_t>(n)))
                : SSL_get_error(session, n) != SSL_ERROR_WANT_READ) {
        return;
      }
    }
    if (ready[1].revents != 0) {
      const ssize_t n = ::read(plain, buffer.data(), buffer.size());
      if (n < 0 && errno == EINTR) {
        continue;
      }
      if (n <= 0) {
        (void)SSL_shutdown(session);
        return;
      }
      if (SSL_write(session, buffer.data(), static_cast<int>(n)) <= 0) {
        return;
      }
    }
  }
}

[[noreturn]] void relay(SSL* session, int socket, int plain) {
  for (const int signal : {SIGPIPE, SIGINT, SIGTERM, SIGHUP}) {
    ::signal(signal, SIG_IGN);  // it ends with its connections
  }
  // What else this process has open would be kept open: descriptors of the tree among others.
  const unsigned low = static_cast<unsigned>(std::min(socket, plain));
  const unsigned high = static_cast<unsigned>(std::max(socket, plain));
  if (low > 0) {
    (void)::close_range(0, low - 1, 0);
  }
  if (high - low > 1) {
    (void)::close_range(low + 1, high - 1, 0);
  }
  (void)::close_range(high + 1, ~0U, 0);
  pass_on(session, socket, plain);
  ::_exit(0);
}

// Ends the handshake and leaves the session to a process that nobody has to wait for.
Result<UniqueFd> hand_over(Session session, const UniqueFd& socket) {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
    return sys_fail("socketpair");
  }
  UniqueFd ours(ends[0]);
  const UniqueFd theirs(ends[1]);
  const pid_t child = ::fork();
  if (child < 0) {
    return sys_fail("fork");
  }
  if (child == 0) {
    if (::fork() == 0) {
      relay(session.get(), socket.get(), theirs.get());
    }
    ::_exit(0);
  }
  while (::waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
  }
  // Its memory alone: freed without a word to the peer, which belongs to the other process now.
  SSL_set_quiet_shutdown(session.get(), 1);
  return ours;
}

Result<Session> session_on(const Context& context, const UniqueFd& socket) {
  Session session(SSL_new(context.get()));
  if (session == nullptr || SSL_set_fd(session.get(), socket.get()) != 1) {
    return fail(Kind::os, "TLS cannot be prepared: {}", reason());
  }
  return session;
}

Result<void> handshake(SSL* session, int (*step)(SSL*)) {
  constexpr time_t kPatience_s = 10;
  const int socket = SSL_get_fd(session);
  timeval limit{kPatience_s, 0};
  (void)::setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  ERR_clear_error();
  errno = 0;
  if (step(session) == 1) {
    limit = {};
    (void)::setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    return {};
  }
  if (errno == EAGAIN || errno == EWOULDBLOCK) {
    return fail(Kind::gone, "the peer of the page server's connection did not take part in the TLS handshake for {} s",
                kPatience_s);
  }
  const long verified = SSL_get_verify_result(session);
  return fail(Kind::denied, "the TLS handshake of the page server's connection failed: {}",
              verified != X509_V_OK ? std::string(X509_verify_cert_error_string(verified)) : reason());
}

}  // namespace

Result<UniqueFd> encrypt_as_client(UniqueFd socket, const TlsFiles& files, const std::string& address) {
  FERRY_TRY(const Context context, context_of(files));
  FERRY_TRY(Session session, session_on(context, socket));
  FERRY_CHECK(handshake(session.get(), SSL_connect));
  if (files.verify_name && !address.empty() && !is_for(session.get(), address)) {
    return fail(Kind::denied, "the page server's certificate is not for {}; --tls-no-cn-verify accepts it", address);
  }
  return hand_over(std::move(session), socket);
}

Result<UniqueFd> encrypt_as_server(UniqueFd socket, const TlsFiles& files) {
  FERRY_TRY(const Context context, context_of(files));
  FERRY_TRY(Session session, session_on(context, socket));
  FERRY_CHECK(handshake(session.get(), SSL_accept));
  return hand_over(std::move(session), socket);
}

}  // namespace ferry::lazy

#include "migrate/tls.h"

#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <sys/random.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>

namespace ferry::migrate {
namespace {

constexpr std::size_t kRecord = SSL3_RT_MAX_PLAIN_LENGTH;
constexpr std::size_t kReadAhead = 256U << 10;  // fewer calls of the kernel than one a record
constexpr std::string_view kIdentity = "ferry ";
// AES-GCM wants a new key after some 2^24 full records (RFC 8446, section 5.5).
constexpr std::uint64_t kBytesPerKey = 64ULL << 30;
constexpr std::array<unsigned char, 2> kAes128Gcm{0x13, 0x01};  // TLS_AES_128_GCM_SHA256

template <auto Free>
struct Freed {
  template <class T>
  void operator()(T* object) const {
    Free(object);
  }
};

std::string openssl_reason() {
  const unsigned long code = ERR_get_error();
  const char* reason = ERR_reason_error_string(code);
  ERR_clear_error();
  return reason == nullptr ? "unknown reason" : reason;
}

}  // namespace

Result<OneTimeKey> OneTimeKey::make() {
  OneTimeKey out;
  // Up to 256 bytes come whole and without EINTR once the pool is ready (getrandom(2)).
  if (::getrandom(out.bytes.data(), out.bytes.size(), 0) != static_cast<ssize_t>(out.bytes.size())) {
    return sys_fail("getrandom");
  }
  return out;
}

Result<OneTimeKey> OneTimeKey::decode(const std::string& bytes) {
  OneTimeKey out;
  if (bytes.size() != out.bytes.size()) {
    return fail(Kind::corrupt, "a one-time key of {} bytes instead of {}", bytes.size(), out.bytes.size());
  }
  std::copy(bytes.begin(), bytes.end(), out.bytes.begin());
  return out;
}

struct TlsTransport::State {
  UniqueFd socket;
  OneTimeKey key;
  unsigned number = 0;
  std::string identity;
  bool is_server = false;
  std::unique_ptr<SSL_CTX, Freed<SSL_CTX_free>> context;
  std::unique_ptr<SSL, Freed<SSL_free>> ssl;
  short wants = POLLIN;  // of the handshake
  std::uint64_t written_with_key = 0;
  std::array<char, kRecord> gathered{};

  // The key in the form that OpenSSL takes for TLS 1.3 (SSL_CTX_set_psk_use_session_callback(3)).
  SSL_SESSION* session() const {
    const SSL_CIPHER* cipher = SSL_CIPHER_find(ssl.get(), kAes128Gcm.data());
    SSL_SESSION* out = SSL_SESSION_new();
    if (out != nullptr &&
        (cipher == nullptr || SSL_SESSION_set1_master_key(out, key.bytes.data(), key.bytes.size()) != 1 ||
         SSL_SESSION_set_cipher(out, cipher) != 1 || SSL_SESSION_set_protocol_version(out, TLS1_3_VERSION) != 1)) {
      SSL_SESSION_free(out);
      return nullptr;
    }
    return out;
  }

  static State& of(SSL* ssl) { return *static_cast<State*>(SSL_get_app_data(ssl)); }

  static int offer(SSL* ssl, const EVP_MD* digest, const unsigned char** id, std::size_t* id_size,
                   SSL_SESSION** session) {
    State& self = of(ssl);
    *session = nullptr;
    if (digest != nullptr && EVP_MD_get_type(digest) != NID_sha256) {
      return 1;  // asked for another hash, for which there is no key
    }
    *id = reinterpret_cast<const unsigned char*>(self.identity.data());
    *id_size = self.identity.size();
    *session = self.session();
    return *session != nullptr ? 1 : 0;
  }

  // Whoever names another identity goes on without a key, and ends for want of a certificate.
  static int look_up(SSL* ssl, const unsigned char* id, std::size_t id_size, SSL_SESSION** session) {
    State& self = of(ssl);
    *session = nullptr;
    const std::string_view name(reinterpret_cast<const char*>(id), id_size);
    if (!name.starts_with(kIdentity)) {
      return 1;
    }
    const std::string_view digits = name.substr(kIdentity.size());
    const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), self.number);
    if (parsed.ec != std::errc{} || parsed.ptr != digits.data() + digits.size()) {
      return 1;
    }
    *session = self.session();
    return *session != nullptr ? 1 : 0;
  }
};

TlsTransport::TlsTransport(std::unique_ptr<State> state) : state_(std::move(state)) {}
TlsTransport::~TlsTransport() = default;

Result<std::unique_ptr<TlsTransport>> TlsTransport::make(UniqueFd socket, const OneTimeKey& key, unsigned number,
                                                         bool is_server) {
  const int flags = ::fcntl(socket.get(), F_GETFL);
  if (flags < 0 || ::fcntl(socket.get(), F_SETFL, flags | O_NONBLOCK) != 0) {
    return sys_fail("fcntl(socket, O_NONBLOCK)");
  }
  auto state = std::make_unique<State>();
  state->socket = std::move(socket);
  state->key = key;
  state->number = number;
  state->identity = fmt::format("{}{}", kIdentity, number);
  state->is_server = is_server;
  state->context.reset(SSL_CTX_new(is_server ? TLS_server_method() : TLS_client_method()));
  SSL_CTX* context = state->context.get();
  if (context == nullptr || SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) != 1 ||
      SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256") != 1) {
    return fail(Kind::unsupported, "OpenSSL cannot speak TLS 1.3: {}", openssl_reason());
  }
  if (is_server) {
    SSL_CTX_set_psk_find_session_callback(context, State::look_up);
    SSL_CTX_set_num_tickets(context, 0);  // nobody comes back
  } else {
    SSL_CTX_set_psk_use_session_callback(context, State::offer);
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER, nullptr);  // a server that shows a certificate is not ours
  }
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  SSL_CTX_set_read_ahead(context, 1);
  SSL_CTX_set_default_read_buffer_len(context, kReadAhead);
  state->ssl.reset(SSL_new(context));
  SSL* ssl = state->ssl.get();
  if (ssl == nullptr || SSL_set_app_data(ssl, state.get()) != 1 || SSL_set_fd(ssl, state->socket.get()) != 1) {
    return fail(Kind::os, "OpenSSL: {}", openssl_reason());
  }
  is_server ? SSL_set_accept_state(ssl) : SSL_set_connect_state(ssl);
  return std::unique_ptr<TlsTransport>(new TlsTransport(std::move(state)));
}

Result<std::unique_ptr<TlsTransport>> TlsTransport::client(UniqueFd socket, const OneTimeKey& key, unsigned number) {
  return make(std::move(socket), key, number, false);
}

Result<std::unique_ptr<TlsTransport>> TlsTransport::server(UniqueFd socket, const OneTimeKey& key) {
  return make(std::move(socket), key, 0, true);
}

Result<bool> TlsTransport::shake_hands() {
  ERR_clear_error();
  SSL* ssl = state_->ssl.get();
  const int done = SSL_do_handshake(ssl);
  if (done == 1) {
    // With a key of ours OpenSSL calls the session resumed; anything else would be a stranger's.
    if (SSL_session_reused(ssl) != 1) {
      return fail(Kind::denied, "the other side of the direct connection does not have the key of this move");
    }
    return true;
  }
  switch (SSL_get_error(ssl, done)) {
    case SSL_ERROR_WANT_READ:
      state_->wants = POLLIN;
      return false;
    case SSL_ERROR_WANT_WRITE:
      state_->wants = POLLOUT;
      return false;
    case SSL_ERROR_SYSCALL:
      return fail(Kind::gone, "the direct connection ended in the handshake");
    default:
      return fail(Kind::denied, "the other side of the direct connection does not have the key of this move ({})",
                  openssl_reason());
  }
}

unsigned TlsTransport::number() const { return state_->number; }

Result<std::size_t> TlsTransport::write(std::span<const iovec> parts) {
  while (!parts.empty() && parts.front().iov_len == 0) {
    parts = parts.subspan(1);
  }
  if (parts.empty()) {
    return std::size_t{0};
  }
  SSL* ssl = state_->ssl.get();
  if (state_->written_with_key > kBytesPerKey && SSL_key_update(ssl, SSL_KEY_UPDATE_NOT_REQUESTED) == 1) {
    state_->written_with_key = 0;
  }
  const void* bytes = parts.front().iov_base;
  std::size_t size = parts.front().iov_len;
  if (size < kRecord && parts.size() > 1) {
    // One record for a head and what follows it.
    std::size_t filled = 0;
    for (const iovec& part : parts) {
      const std::size_t take = std::min(part.iov_len, kRecord - filled);
      if (take != 0) {  // an empty part may have no place
        std::memcpy(state_->gathered.data() + filled, part.iov_base, take);
        filled += take;
      }
    }
    bytes = state_->gathered.data();
    size = filled;
  }
  ERR_clear_error();
  std::size_t written = 0;
  const int done = SSL_write_ex(ssl, bytes, size, &written);
  if (done == 1) {
    state_->written_with_key += written;
    return written;
  }
  switch (SSL_get_error(ssl, done)) {
    case SSL_ERROR_WANT_WRITE:
      return std::size_t{0};
    case SSL_ERROR_SYSCALL:
    case SSL_ERROR_ZERO_RETURN:
      return fail(Kind::gone, "the direct connection broke");
    default:
      return fail(Kind::corrupt, "the direct connection was disturbed: {}", openssl_reason());
  }
}

Transport::Wait TlsTransport::to_write() const { return {state_->socket.get(), POLLOUT}; }

Result<std::size_t> TlsTransport::read(void* bytes, std::size_t size) {
  ERR_clear_error();
  std::size_t got = 0;
  SSL* ssl = state_->ssl.get();
  const int done = SSL_read_ex(ssl, bytes, size, &got);
  if (done == 1) {
    return got;
  }
  switch (SSL_get_error(ssl, done)) {
    case SSL_ERROR_WANT_READ:
      return std::size_t{0};
    case SSL_ERROR_SYSCALL:
    case SSL_ERROR_ZERO_RETURN:
      return fail(Kind::gone, "the direct connection ended");
    default:
      break;
  }
  if (ERR_GET_REASON(ERR_peek_error()) == SSL_R_UNEXPECTED_EOF_WHILE_READING) {
    ERR_clear_error();
    return fail(Kind::gone, "the direct connection ended");
  }
  return fail(Kind::corrupt, "the direct connection was disturbed: {}", openssl_reason());
}

Transport::Wait TlsTransport::to_read() const {
  const bool in_handshake = SSL_is_init_finished(state_->ssl.get()) == 0;
  return {state_->socket.get(), in_handshake ? state_->wants : static_cast<short>(POLLIN)};
}

// Also bytes that OpenSSL has read ahead and not looked at yet.
bool TlsTransport::pending() const { return SSL_has_pending(state_->ssl.get()) == 1; }

void TlsTransport::hang_up() { ::shutdown(state_->socket.get(), SHUT_RDWR); }

}  // namespace ferry::migrate

// TLS 1.3 between two processes that share a key which is used once (RFC 8446, section 2.2).
//
// Both sides prove that they have the key before a byte of either is delivered; the keys of the connection come
// from a Diffie-Hellman exchange besides, so that it stays secret whoever learns the one-time key later.
// There are no certificates: a client without the key ends in the handshake, and so does a server.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"
#include "migrate/transport.h"

namespace ferry::migrate {

struct OneTimeKey {
  std::array<std::uint8_t, 32> bytes{};
  static Result<OneTimeKey> make();
  // Errors: corrupt, if it has another length.
  static Result<OneTimeKey> decode(const std::string& bytes);
  [[nodiscard]] std::string encode() const { return {bytes.begin(), bytes.end()}; }
};

class TlsTransport : public Transport {
 public:
  // Around a connected socket, which becomes non-blocking.  `number` tells several connections with the same
  // key apart.
  static Result<std::unique_ptr<TlsTransport>> client(UniqueFd socket, const OneTimeKey& key, unsigned number);
  static Result<std::unique_ptr<TlsTransport>> server(UniqueFd socket, const OneTimeKey& key);
  ~TlsTransport() override;

  // The next step; true when it is over.  Otherwise wait for to_read() and call again.
  // Errors: denied, if the other side does not have the key.
  Result<bool> shake_hands();
  // After the handshake.
  [[nodiscard]] unsigned number() const;

  Result<std::size_t> write(std::span<const iovec> parts) override;
  [[nodiscard]] Wait to_write() const override;
  Result<std::size_t> read(void* bytes, std::size_t size) override;
  [[nodiscard]] Wait to_read() const override;
  [[nodiscard]] bool pending() const override;
  void hang_up() override;

 private:
  struct State;
  explicit TlsTransport(std::unique_ptr<State> state);
  static Result<std::unique_ptr<TlsTransport>> make(UniqueFd socket, const OneTimeKey& key, unsigned number,
                                                    bool is_server);
  std::unique_ptr<State> state_;
};

}  // namespace ferry::migrate

// Unix sockets, restore.
#pragma once

#include <map>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "state/file_kind.h"
#include "state/unix_socket/on_behalf.h"

namespace ferry::state::unix_socket {

class Restorer {
 public:
  Result<UniqueFd> open(const pb::UnixSkEntry& entry, RestoreContext& context);
  Result<void> connect(const pb::UnixSkEntry& entry, int fd, RestoreContext& context);
  // When everything is connected: names of deleted sockets go, helpers close.
  Result<void> tidy(RestoreContext& context);

 private:
  void index(const image::Set& set);
  [[nodiscard]] const pb::UnixSkEntry* by_inode(std::uint32_t inode) const;
  // The peer, if the two are connected to each other.
  [[nodiscard]] const pb::UnixSkEntry* partner(const pb::UnixSkEntry& entry) const;
  // The listener whose accepted socket this is: an established stream socket with a listener's name.
  [[nodiscard]] const pb::UnixSkEntry* accepted_from(const pb::UnixSkEntry& entry) const;

  // A pair as the process made it whose doing it was.
  Result<OnBehalf::Pair> make_pair(const pb::UnixSkEntry& entry, const pb::UnixSkEntry* other, RestoreContext& context);
  Result<UniqueFd> open_pair(const pb::UnixSkEntry& entry, const pb::UnixSkEntry* other, RestoreContext& context);
  Result<UniqueFd> open_single(const pb::UnixSkEntry& entry, RestoreContext& context);
  Result<void> bind(const pb::UnixSkEntry& entry, int fd, RestoreContext& context);
  // Connects to a socket that has a name, be it deleted.
  Result<void> connect_by_name(const pb::UnixSkEntry& to, int fd, const std::optional<Caller>& caller,
                               RestoreContext& context) const;
  [[nodiscard]] std::optional<Caller> owner_of(const pb::UnixSkEntry& entry, const RestoreContext& context) const;
  // Puts what the image holds for `entry` into its queue.
  Result<void> deliver(const pb::UnixSkEntry& entry, int fd, RestoreContext& context);
  Result<void> deliver(const pb::UnixSkEntry& entry, int fd, const pb::SkPacketEntry& packet, std::string_view bytes,
                       RestoreContext& context);
  Result<int> sender_for(const pb::UnixSkEntry& entry, int fd, RestoreContext& context);
  // The datagram socket of that name: one of the set, or a helper for one that is closed.
  Result<int> sender_named(const std::string& name, const pb::UnixSkEntry& to, RestoreContext& context);
  [[nodiscard]] bool made_as_pair(const pb::UnixSkEntry& entry) const;

  bool indexed_ = false;
  std::map<std::uint32_t, const pb::UnixSkEntry*> by_inode_;
  // Abstract names count within a network namespace; of others that number is 0 (unix(7)).
  using Name = std::pair<std::uint32_t, std::string>;
  static Name name_in(const pb::UnixSkEntry& place, const std::string& name);
  std::map<Name, const pb::UnixSkEntry*> datagram_names_;
  std::map<std::pair<std::uint32_t, Name>, const pb::UnixSkEntry*> listeners_;  // by type and name
  std::map<std::uint32_t, std::vector<const image::Entry*>> queues_;            // by file id
  std::map<std::uint32_t, std::uint32_t> owners_;           // by file id: the pid of a process that has it
  using PairKind = std::tuple<Caller, int, std::uint32_t>;  // whose, type, network namespace
  static PairKind pair_kind(const Caller& caller, const pb::UnixSkEntry& entry);
  std::map<PairKind, std::vector<OnBehalf::Pair>> prepared_;  // pairs nobody has taken yet
  std::map<PairKind, std::size_t> pairs_wanted_;
  std::map<std::uint32_t, UniqueFd> halves_;       // by inode: made with its partner, not asked for yet
  std::map<std::uint32_t, UniqueFd> closed_ends_;  // by the inode whose partner the tree has closed
  std::map<std::uint32_t, UniqueFd> senders_;      // helpers, by the inode they send to
  std::map<Name, UniqueFd> dead_senders_;          // by the name of the socket that they stand for
  struct Alias {
    std::string directory, path;
    std::int64_t mount = 0;
  };
  std::map<std::uint32_t, Alias> aliases_;  // by inode: where a deleted socket's file is for now
  std::set<std::uint32_t> delivered_;
};

}  // namespace ferry::state::unix_socket

#include "state/unix_socket/unix_socket.h"

#include <sys/socket.h>

#include "state/socket/options.h"
#include "state/unix_socket/collect.h"
#include "state/unix_socket/restore.h"

namespace ferry::state {
namespace {

class UnixSocketKind : public FileKind {
 public:
  [[nodiscard]] std::string_view name() const override { return "Unix socket"; }
  [[nodiscard]] pb::FdType type() const override { return pb::FD_UNIXSK; }

  [[nodiscard]] bool matches(const FdProbe& probe) const override {
    if (!S_ISSOCK(probe.stat.st_mode) || !probe.link.starts_with("socket:[")) {
      return false;
    }
    const auto domain = socket::get_int(probe.ours, SOL_SOCKET, SO_DOMAIN, "SO_DOMAIN");
    return domain.has_value() && *domain == AF_UNIX;
  }

  Result<void> collect(const FdProbe& probe, DumpContext& context, pb::FileEntry& out) override {
    return collector_.collect(probe, context, out);
  }
  Result<void> finish(DumpContext& context) override { return collector_.finish(context); }

  Result<UniqueFd> open(const pb::FileEntry& file, RestoreContext& context) override {
    return restorer_.open(file.usk(), context);
  }
  Result<void> connect(const pb::FileEntry& file, int fd, RestoreContext& context) override {
    return restorer_.connect(file.usk(), fd, context);
  }
  Result<void> complete(RestoreContext& context) override { return restorer_.tidy(context); }

 private:
  unix_socket::Collector collector_;
  unix_socket::Restorer restorer_;
};

}  // namespace

std::unique_ptr<FileKind> make_unix_socket_kind() { return std::make_unique<UnixSocketKind>(); }

}  // namespace ferry::state

#include "state/tty/described.h"

#include <sys/sysmacros.h>

#include "state/tty/controlling.h"
#include "state/tty/pty.h"
#include "state/tty/termios.h"

namespace ferry::state::tty {

std::uint32_t encode_rdev(dev_t device) { return static_cast<std::uint32_t>(device); }

Result<void> collect_hung_up(const FdProbe& probe, std::uint32_t index, DumpContext& context, pb::TtyFileEntry& entry) {
  FERRY_CHECK(collect_fown(probe, context, *entry.mutable_fown()));
  std::string name = probe.link;
  if (constexpr std::string_view deleted = " (deleted)"; name.ends_with(deleted)) {
    name.resize(name.size() - deleted.size());
  }
  pb::FileEntry path;
  path.set_type(pb::FD_REG);
  path.set_id(context.files.next_id());
  pb::RegFileEntry& reg = *path.mutable_reg();
  reg.set_id(path.id());
  reg.set_flags(probe.status_flags());
  reg.set_pos(0);
  reg.set_name(name);
  reg.set_mnt_id(probe.info.mnt_id);
  reg.set_mode(probe.stat.st_mode);
  *reg.mutable_fown() = entry.fown();
  entry.set_regf_id(path.id());
  const std::uint32_t id = index << 1;
  entry.set_tty_info_id(id);
  context.set.add({image::Type::files}, std::move(path));
  pb::TtyInfoEntry info;
  info.set_id(id);
  info.set_type(pb::TTYTYPE_PTY);
  info.set_locked(false);
  info.set_exclusive(false);
  info.set_packet_mode(false);
  info.set_sid(0);
  info.set_pgrp(0);
  info.set_rdev(encode_rdev(probe.stat.st_rdev));
  info.set_dev(encode_rdev(probe.stat.st_dev));
  info.mutable_pty()->set_index(slave_index(probe.stat.st_rdev));
  context.set.add({image::Type::tty_info}, std::move(info));
  return {};
}

Result<void> add_session(int master, std::uint32_t index, std::int32_t tty_nr, const std::string& subject,
                         DumpContext& context) {
  const Session session = session_of(context, tty_nr);
  pb::TtyInfoEntry info;
  info.set_id(index << 1);
  info.set_type(pb::TTYTYPE_PTY);
  info.set_locked(false);
  info.set_exclusive(false);
  info.set_packet_mode(false);
  info.set_sid(session.leader);
  info.set_pgrp(session.foreground);
  info.set_rdev(encode_rdev(makedev(static_cast<unsigned>(tty_nr) >> 8, static_cast<unsigned>(tty_nr) & 0xff)));
  info.mutable_pty()->set_index(index);
  FERRY_CHECK(collect_attributes(master, subject, info));
  context.set.add({image::Type::tty_info}, std::move(info));
  return {};
}

}  // namespace ferry::state::tty

// The kinds of image files, in CRIU's words (docs/images.md has the table).
#pragma once

#include <cstdint>

namespace ferry::image {

enum class Type : std::uint8_t {
  inventory,
  pstree,
  core,
  ids,
  mm,
  fs,
  fdinfo,
  files,
  pagemap,
  pagemap_shmem,
  pipes_data,
  fifo_data,
  sk_queues,
  tty_info,
  tty_data,
  remap_fpath,
  ghost_file,  // id in hexadecimal in the file name
  memfd,
  tcp_stream,  // id in hexadecimal
  filelocks,
  seccomp,
  apparmor,
  cgroup,
  bpfmap_data,
  mountpoints,
  tmpfs_dev,  // raw: gzip-compressed tar
  autofs,
  binfmt_misc,
  utsns,
  userns,
  timens,
  pidns,
  ipcns_var,
  ipcns_shm,
  ipcns_msg,
  ipcns_sem,
  netdev,
  netns,
  ifaddr,     // raw
  route,      // raw
  route6,     // raw
  rule,       // raw
  iptables,   // raw
  ip6tables,  // raw
  nftables,   // raw
  netns_ct,   // raw
  netns_exp,  // raw
  cpuinfo,
};

}  // namespace ferry::image

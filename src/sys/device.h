// Device numbers as the kernel writes them into procfs.
#pragma once

#include <sys/sysmacros.h>
#include <sys/types.h>

#include <cstdint>

namespace ferry::sys {

// major << 20 | minor (include/linux/kdev_t.h), of what stat(2) says.
inline std::uint32_t kernel_device(dev_t device) {
  return static_cast<std::uint32_t>(major(device) << 20 | minor(device));
}

inline dev_t user_device(std::uint32_t device) { return makedev(device >> 20, device & 0xfffff); }

}  // namespace ferry::sys

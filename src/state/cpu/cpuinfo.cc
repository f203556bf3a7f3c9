#include "state/cpu/cpuinfo.h"

#include <cpuid.h>
#include <fcntl.h>

#include <array>
#include <cstring>

#include "image/proto/cpuinfo.pb.h"
#include "image/set.h"
#include "state/options.h"
#include "sys/file.h"

namespace ferry::state::cpu {
namespace {

constexpr image::Name kCpuinfo{image::Type::cpuinfo, 0};
constexpr std::uint32_t kWordsImageVersion = 2;  // img_version in which every file has the common magic

struct Leaf {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};
// All zero if the processor has no such leaf.
Leaf leaf(unsigned number, unsigned sub = 0) {
  Leaf l;
  if (__get_cpuid_count(number, sub, &l.eax, &l.ebx, &l.ecx, &l.edx) == 0) {
    return {};
  }
  return l;
}

// The order of the words is a fact of the image format, capability_ver 2.  Words that come from
// leaves of vendors of old, or that Linux makes up itself, are zero.
constexpr std::size_t kWords = 19;
constexpr std::size_t kOldWords = 12;  // capability_ver 1: the first twelve of them
std::array<std::uint32_t, kWords> feature_words() {
  std::array<std::uint32_t, kWords> words{};
  words[0] = leaf(1).edx;
  words[1] = leaf(0x80000001).edx;
  words[4] = leaf(1).ecx;
  words[6] = leaf(0x80000001).ecx;
  words[9] = leaf(7).ebx;
  words[10] = leaf(0xd, 1).eax;
  words[11] = leaf(7).ecx;
  words[12] = leaf(0xf, 1).edx;
  words[13] = leaf(0x80000008).ebx;
  words[14] = leaf(6).eax;
  words[15] = leaf(0x8000000a).edx;
  words[16] = leaf(0xf, 0).edx;
  words[17] = leaf(0x80000007).ebx;
  words[18] = leaf(7).edx;
  return words;
}

// Instructions that user programs may be using because CPUID once said so (Intel SDM volume 2, CPUID;
// AMD APM volume 3, appendix E).  What only a kernel can use is left out.
struct Instruction {
  std::uint8_t word, bit;
  const char* name;
};
constexpr std::array kInstructions{
    Instruction{0, 0, "fpu"},
    Instruction{0, 4, "tsc"},
    Instruction{0, 8, "cx8"},
    Instruction{0, 15, "cmov"},
    Instruction{0, 19, "clflush"},
    Instruction{0, 23, "mmx"},
    Instruction{0, 24, "fxsr"},
    Instruction{0, 25, "sse"},
    Instruction{0, 26, "sse2"},
    Instruction{1, 22, "mmxext"},
    Instruction{1, 27, "rdtscp"},
    Instruction{1, 30, "3dnowext"},
    Instruction{1, 31, "3dnow"},
    Instruction{4, 0, "sse3"},
    Instruction{4, 1, "pclmulqdq"},
    Instruction{4, 9, "ssse3"},
    Instruction{4, 12, "fma"},
    Instruction{4, 13, "cx16"},
    Instruction{4, 19, "sse4_1"},
    Instruction{4, 20, "sse4_2"},
    Instruction{4, 22, "movbe"},
    Instruction{4, 23, "popcnt"},
    Instruction{4, 25, "aes"},
    Instruction{4, 26, "xsave"},
    Instruction{4, 28, "avx"},
    Instruction{4, 29, "f16c"},
    Instruction{4, 30, "rdrand"},
    Instruction{6, 0, "lahf_lm"},
    Instruction{6, 5, "abm"},
    Instruction{6, 6, "sse4a"},
    Instruction{6, 7, "misalignsse"},
    Instruction{6, 8, "3dnowprefetch"},
    Instruction{6, 11, "xop"},
    Instruction{6, 15, "lwp"},
    Instruction{6, 16, "fma4"},
    Instruction{6, 21, "tbm"},
    Instruction{9, 0, "fsgsbase"},
    Instruction{9, 3, "bmi1"},
    Instruction{9, 4, "hle"},
    Instruction{9, 5, "avx2"},
    Instruction{9, 8, "bmi2"},
    Instruction{9, 11, "rtm"},
    Instruction{9, 16, "avx512f"},
    Instruction{9, 17, "avx512dq"},
    Instruction{9, 18, "rdseed"},
    Instruction{9, 19, "adx"},
    Instruction{9, 21, "avx512ifma"},
    Instruction{9, 23, "clflushopt"},
    Instruction{9, 24, "clwb"},
    Instruction{9, 26, "avx512pf"},
    Instruction{9, 27, "avx512er"},
    Instruction{9, 28, "avx512cd"},
    Instruction{9, 29, "sha_ni"},
    Instruction{9, 30, "avx512bw"},
    Instruction{9, 31, "avx512vl"},
    Instruction{10, 0, "xsaveopt"},
    Instruction{10, 1, "xsavec"},
    Instruction{10, 2, "xgetbv1"},
    Instruction{11, 1, "avx512vbmi"},
    Instruction{11, 4, "ospke"},
    Instruction{11, 6, "avx512_vbmi2"},
    Instruction{11, 8, "gfni"},
    Instruction{11, 9, "vaes"},
    Instruction{11, 10, "vpclmulqdq"},
    Instruction{11, 11, "avx512_vnni"},
    Instruction{11, 12, "avx512_bitalg"},
    Instruction{11, 14, "avx512_vpopcntdq"},
    Instruction{11, 22, "rdpid"},
    Instruction{11, 27, "movdiri"},
    Instruction{11, 28, "movdir64b"},
    Instruction{18, 2, "avx512_4vnniw"},
    Instruction{18, 3, "avx512_4fmaps"},
    Instruction{18, 8, "avx512_vp2intersect"},
    Instruction{18, 14, "serialize"},
    Instruction{18, 22, "amx_bf16"},
    Instruction{18, 23, "avx512_fp16"},
    Instruction{18, 24, "amx_tile"},
    Instruction{18, 25, "amx_int8"},
};

bool has(const pb::CpuinfoX86Entry& entry, const Instruction& instruction) {
  return instruction.word < entry.capability_size() && (entry.capability(instruction.word) >> instruction.bit & 1) != 0;
}

std::string text_of_registers(const Leaf& l, bool swap_last) {
  std::array<char, 16> bytes{};
  const std::array<unsigned, 4> order{swap_last ? l.ebx : l.eax, swap_last ? l.edx : l.ebx, l.ecx, l.edx};
  std::memcpy(bytes.data(), order.data(), sizeof order);
  return {bytes.data(), swap_last ? std::size_t{12} : bytes.size()};
}

pb::CpuinfoX86Entry::Vendor vendor() {
  // The name stands in ebx, edx, ecx, in this order.
  const std::string name = text_of_registers(leaf(0), true);
  if (name == "GenuineIntel") {
    return pb::CpuinfoX86Entry::VENDOR_INTEL;
  }
  return name == "AuthenticAMD" ? pb::CpuinfoX86Entry::VENDOR_AMD : pb::CpuinfoX86Entry::VENDOR_UNKNOWN;
}

std::string brand() {
  std::string text;
  for (unsigned number = 0x80000002; number <= 0x80000004; ++number) {
    text += text_of_registers(leaf(number), false);
  }
  return text.substr(0, text.find('\0'));
}

constexpr bool wants(std::uint32_t capability, CpuCapability what) {
  return (capability & static_cast<std::uint32_t>(what)) != 0;
}

}  // namespace

Result<void> read_cpuinfo(pb::CpuinfoX86Entry& out) {
  const Leaf signature = leaf(1);
  if (signature.eax == 0) {
    return fail(Kind::unsupported, "this processor does not tell its features by CPUID");
  }
  // Intel SDM volume 2, CPUID leaf 1: the extended family counts only for family 15, the extended
  // model for families 6 and 15 on Intel; AMD has models extended from family 15 on.
  const unsigned base_family = signature.eax >> 8 & 0xf;
  const unsigned family = base_family == 0xf ? base_family + (signature.eax >> 20 & 0xff) : base_family;
  unsigned model = signature.eax >> 4 & 0xf;
  if (family >= 6) {
    model += (signature.eax >> 16 & 0xf) << 4;
  }
  out.set_vendor_id(vendor());
  out.set_cpu_family(family);
  out.set_model(model);
  out.set_stepping(signature.eax & 0xf);
  out.set_capability_ver(2);
  for (const std::uint32_t word : feature_words()) {
    out.add_capability(word);
  }
  out.set_model_id(brand());
  const Leaf state = leaf(0xd);
  out.set_xfeatures_mask(std::uint64_t{state.edx} << 32 | state.eax);
  out.set_xsave_size(state.ebx);
  out.set_xsave_size_max(state.ecx);
  return {};
}

Result<void> compare_cpuinfo(const pb::CpuinfoX86Entry& image, const pb::CpuinfoX86Entry& host,
                             std::uint32_t capability) {
  const int words = image.capability_size();
  if (!(image.capability_ver() == 2 && words == kWords) && !(image.capability_ver() == 1 && words == kOldWords)) {
    return fail(Kind::corrupt, "cpuinfo.img: {} feature words of version {}", words, image.capability_ver());
  }
  if (wants(capability, CpuCapability::cpu) &&
      (image.vendor_id() != host.vendor_id() || image.cpu_family() != host.cpu_family() ||
       image.model() != host.model())) {
    return fail(Kind::unsupported,
                "the image is of another processor: vendor {}, family {}, model {}, and this host has vendor {}, "
                "family {}, model {}",
                static_cast<int>(image.vendor_id()), image.cpu_family(), image.model(),
                static_cast<int>(host.vendor_id()), host.cpu_family(), host.model());
  }
  if (wants(capability, CpuCapability::instructions)) {
    std::string missing;
    for (const Instruction& instruction : kInstructions) {
      if (has(image, instruction) && !has(host, instruction)) {
        missing += missing.empty() ? "" : ", ";
        missing += instruction.name;
      }
    }
    if (!missing.empty()) {
      return fail(Kind::unsupported, "this host's processor lacks what the image's offered to programs: {}", missing);
    }
  }
  if (wants(capability, CpuCapability::fpu) && (image.xfeatures_mask() & ~host.xfeatures_mask()) != 0) {
    return fail(Kind::unsupported, "this host's processor lacks extended state components {:#x} of the image's {:#x}",
                image.xfeatures_mask() & ~host.xfeatures_mask(), image.xfeatures_mask());
  }
  return {};
}

Result<void> collect_cpuinfo(image::Set& set) {
  pb::CpuinfoEntry entry;
  FERRY_CHECK(read_cpuinfo(*entry.add_x86_entry()));
  set.add(kCpuinfo, std::move(entry));
  return {};
}

Result<void> check_cpuinfo(const image::Set& set, std::uint32_t capability) {
  if (capability == 0 || !set.has(kCpuinfo)) {
    return {};
  }
  FERRY_TRY(const auto* const entry, set.one<pb::CpuinfoEntry>(kCpuinfo));
  if (entry->x86_entry_size() == 0) {
    return fail(Kind::unsupported, "{} is of another architecture", image::file_name(kCpuinfo));
  }
  pb::CpuinfoX86Entry host;
  FERRY_CHECK(read_cpuinfo(host));
  return compare_cpuinfo(entry->x86_entry(0), host, capability);
}

Result<void> dump_cpuinfo(int images_dir) {
  image::Set set;
  FERRY_CHECK(collect_cpuinfo(set));
  FERRY_TRY(const std::string bytes, image::encode_file(set, kCpuinfo));
  const std::string file = image::file_name(kCpuinfo);
  FERRY_TRY(const UniqueFd fd, sys::open_at(images_dir, file, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW, 0644));
  return sys::write_all(fd.get(), bytes.data(), bytes.size(), file);
}

Result<void> check_cpuinfo(int images_dir, std::uint32_t capability) {
  const std::string file = image::file_name(kCpuinfo);
  FERRY_TRY(std::string bytes, sys::read_file_at(images_dir, file));
  image::Set set;
  FERRY_CHECK(image::decode_file(set, kCpuinfo, std::move(bytes), kWordsImageVersion));
  return check_cpuinfo(set, capability);
}

}  // namespace ferry::state::cpu

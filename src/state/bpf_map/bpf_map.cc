#include "state/bpf_map/bpf_map.h"

#include <fcntl.h>
#include <linux/bpf.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <map>
#include <set>

#include "sys/file.h"

namespace ferry::state {
namespace {

Result<int> call(int command, bpf_attr& attributes, const std::string& subject) {
  const long out = ::syscall(SYS_bpf, command, &attributes, sizeof attributes);
  if (out < 0) {
    return sys_fail(fmt::format("bpf({}, {})", command, subject));
  }
  return static_cast<int>(out);
}

std::uint64_t address_of(const void* at) { return reinterpret_cast<std::uint64_t>(at); }

Result<bpf_map_info> info_of(int map, const std::string& subject) {
  bpf_map_info out{};
  bpf_attr attributes{};
  attributes.info.bpf_fd = static_cast<std::uint32_t>(map);
  attributes.info.info_len = sizeof out;
  attributes.info.info = address_of(&out);
  FERRY_TRY(const int done, call(BPF_OBJ_GET_INFO_BY_FD, attributes, subject));
  (void)done;
  return out;
}

struct Content {
  std::string keys, values;
  std::uint32_t count = 0;
};

Result<Content> read_all(int map, const bpf_map_info& info, const std::string& subject) {
  Content out;
  out.keys.resize(std::size_t{info.key_size} * info.max_entries);
  out.values.resize(std::size_t{info.value_size} * info.max_entries);
  // bpf(2), BPF_MAP_LOOKUP_BATCH: a stopped tree writes nothing meanwhile, so one call with room for all is all.
  std::uint64_t next[2] = {};
  bpf_attr attributes{};
  attributes.batch.map_fd = static_cast<std::uint32_t>(map);
  attributes.batch.keys = address_of(out.keys.data());
  attributes.batch.values = address_of(out.values.data());
  attributes.batch.out_batch = address_of(next);
  attributes.batch.count = info.max_entries;
  auto done = call(BPF_MAP_LOOKUP_BATCH, attributes, subject);
  if (!done.has_value() && done.error().os_errno != ENOENT) {  // ENOENT: that was the end
    return tl::unexpected(std::move(done).error());
  }
  out.count = attributes.batch.count;
  out.keys.resize(std::size_t{info.key_size} * out.count);
  out.values.resize(std::size_t{info.value_size} * out.count);
  return out;
}

class BpfMapKind : public FileKind {
 public:
  [[nodiscard]] std::string_view name() const override { return "eBPF map"; }
  [[nodiscard]] pb::FdType type() const override { return pb::FD_BPFMAP; }
  [[nodiscard]] bool matches(const FdProbe& probe) const override { return probe.link == "anon_inode:bpf-map"; }

  Result<void> collect(const FdProbe& probe, DumpContext& context, pb::FileEntry& out) override {
    const std::string subject = probe.subject();
    FERRY_TRY(const bpf_map_info info, info_of(probe.ours, subject));
    if (info.type != BPF_MAP_TYPE_HASH && info.type != BPF_MAP_TYPE_ARRAY) {
      return fail(Kind::unsupported, "{}: an eBPF map of type {} cannot be carried over, only arrays and hashes",
                  subject, info.type);
    }
    if (info.btf_id != 0 || info.ifindex != 0) {
      return fail(Kind::unsupported, "{}: an eBPF map with type information or of a device cannot be carried over",
                  subject);
    }
    const auto number = [&](std::string_view key) { return sys::parse_number(probe.info.get(key).value_or("0")); };
    pb::BpfmapFileEntry& entry = *out.mutable_bpf();
    entry.set_id(out.id());
    entry.set_flags(probe.status_flags());
    entry.set_pos(probe.info.pos);
    entry.set_map_type(info.type);
    entry.set_key_size(info.key_size);
    entry.set_value_size(info.value_size);
    entry.set_map_id(info.id);
    entry.set_max_entries(info.max_entries);
    entry.set_map_flags(info.map_flags);
    entry.set_memlock(number("memlock").value_or(0));
    entry.set_frozen(number("frozen").value_or(0) != 0);
    entry.set_map_name(std::string(info.name, ::strnlen(info.name, sizeof info.name)));
    entry.set_map_extra(info.map_extra);
    entry.set_ifindex(info.ifindex);
    FERRY_CHECK(collect_fown(probe, context, *entry.mutable_fown()));
    if (!saved_.insert(info.id).second) {
      return {};
    }
    FERRY_TRY(Content content, read_all(probe.ours, info, subject));
    pb::BpfmapDataEntry data;
    data.set_map_id(info.id);
    data.set_keys_bytes(static_cast<std::uint32_t>(content.keys.size()));
    data.set_values_bytes(static_cast<std::uint32_t>(content.values.size()));
    data.set_count(content.count);
    context.set.add({image::Type::bpfmap_data}, std::move(data), content.keys + content.values);
    return {};
  }

  Result<UniqueFd> open(const pb::FileEntry& file, RestoreContext& context) override {
    const pb::BpfmapFileEntry& entry = file.bpf();
    UniqueFd& map = maps_[entry.map_id()];
    if (!map) {
      FERRY_TRY(map, create(entry, context.set));
    }
    return sys::duplicate(map.get());
  }

 private:
  static Result<UniqueFd> create(const pb::BpfmapFileEntry& entry, const image::Set& set) {
    const std::string subject = fmt::format("map {}", entry.map_name());
    bpf_attr attributes{};
    attributes.map_type = entry.map_type();
    attributes.key_size = entry.key_size();
    attributes.value_size = entry.value_size();
    attributes.max_entries = entry.max_entries();
    attributes.map_flags = entry.map_flags();
    attributes.map_extra = entry.map_extra();
    std::memcpy(attributes.map_name, entry.map_name().data(),
                std::min(entry.map_name().size(), sizeof attributes.map_name - 1));
    FERRY_TRY(const int made, call(BPF_MAP_CREATE, attributes, subject));
    UniqueFd map(made);
    for (const image::Entry& e : set.entries({image::Type::bpfmap_data})) {
      const auto& data = static_cast<const pb::BpfmapDataEntry&>(*e.message);
      if (data.map_id() != entry.map_id() || data.count() == 0) {
        continue;
      }
      if (std::uint64_t{data.count()} * entry.key_size() != data.keys_bytes() ||
          e.extra.size() < std::size_t{data.keys_bytes()} + std::uint64_t{data.count()} * entry.value_size()) {
        return fail(Kind::corrupt, "bpfmap-data.img has {} bytes for {} entries of map {}", e.extra.size(),
                    data.count(), entry.map_name());
      }
      bpf_attr update{};
      update.batch.map_fd = static_cast<std::uint32_t>(map.get());
      update.batch.keys = address_of(e.extra.data());
      update.batch.values = address_of(e.extra.data() + data.keys_bytes());
      update.batch.count = data.count();
      FERRY_TRY(const int done, call(BPF_MAP_UPDATE_BATCH, update, subject));
      (void)done;
    }
    if (entry.frozen()) {
      bpf_attr freeze{};
      freeze.map_fd = static_cast<std::uint32_t>(map.get());
      FERRY_TRY(const int done, call(BPF_MAP_FREEZE, freeze, subject));
      (void)done;
    }
    return map;
  }

  std::set<std::uint32_t> saved_;           // checkpoint: maps whose content is in the set
  std::map<std::uint32_t, UniqueFd> maps_;  // restore, by their number then
};

}  // namespace

std::unique_ptr<FileKind> make_bpf_map_kind() { return std::make_unique<BpfMapKind>(); }

}  // namespace ferry::state

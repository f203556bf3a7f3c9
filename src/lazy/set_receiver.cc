#include "lazy/set_receiver.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/log.h"
#include "image/proto/mm.pb.h"
#include "sys/file.h"

namespace ferry::lazy {
namespace {

constexpr std::size_t kBuffer = 1U << 20;

}  // namespace

Result<void> SetReceiver::serve(int socket) {
  buffer_.resize(kBuffer);
  while (!done_) {
    FERRY_TRY(const auto command, receive(socket));
    if (!command.has_value()) {
      return fail(Kind::corrupt, "the sender closed the connection before it said that everything was sent");
    }
    FERRY_CHECK(obey(socket, *command).during("command {:#x} of the sender", command->verb));
  }
  return {};
}

Result<void> SetReceiver::obey(int socket, const Command& command) {
  switch (static_cast<Verb>(command.verb)) {
    case Verb::open:
      return open(command);
    case Verb::open2: {
      FERRY_CHECK(open(command));
      const std::uint8_t parent = has_parent(*pagemap_of(command.destination)) ? 1 : 0;
      return answer(socket, &parent, sizeof parent);
    }
    case Verb::parent: {
      const auto pagemap = pagemap_of(command.destination);
      if (!pagemap.has_value()) {
        return fail(Kind::corrupt, "destination {:#x} is none", command.destination);
      }
      const std::int32_t parent = has_parent(*pagemap) ? 1 : 0;
      return answer(socket, &parent, sizeof parent);
    }
    case Verb::add:
      return add(socket, command, image::kPresent);
    case Verb::hole:
      return add(socket, command, image::kInParent);
    case Verb::add_f:
      return add(socket, command, command.flags);
    case Verb::close:
    case Verb::force_close: {
      FERRY_CHECK(finish_writer());
      FERRY_CHECK(save());
      done_ = true;
      const std::int32_t good = 0;
      return answer(socket, &good, sizeof good);
    }
    case Verb::get:
      return fail(Kind::corrupt, "this page server takes pages and has none to give");
  }
  return fail(Kind::corrupt, "it is none of the protocol; CRIU before 4.2 speaks another one");
}

Result<void> SetReceiver::open(const Command& command) {
  const auto pagemap = pagemap_of(command.destination);
  if (!pagemap.has_value()) {
    return fail(Kind::corrupt, "destination {:#x} is none", command.destination);
  }
  FERRY_CHECK(finish_writer());
  if (set_.has(*pagemap)) {
    return fail(Kind::corrupt, "{} was sent already", image::file_name(*pagemap));
  }
  FERRY_TRY(auto writer, image::PageWriter::create(set_, *pagemap, directory_, ++last_pages_id_));
  writer_ = std::make_unique<image::PageWriter>(std::move(writer));
  destination_ = command.destination;
  log::debug("receiving {}", image::file_name(*pagemap));
  return {};
}

Result<void> SetReceiver::add(int socket, const Command& command, std::uint32_t flags) {
  if (destination_ != command.destination) {
    FERRY_CHECK(open(command));
  }
  if (command.vaddr % image::kPageSize != 0 || command.pages == 0 || command.pages > kMaxPages ||
      command.vaddr > UINT64_MAX - command.pages * image::kPageSize) {
    return fail(Kind::corrupt, "{} pages at {:#x} are no range", command.pages, command.vaddr);
  }
  if ((flags & ~std::uint32_t{image::kInParent | image::kLazy | image::kPresent}) != 0 ||
      (flags & (image::kInParent | image::kPresent)) == (image::kInParent | image::kPresent)) {
    return fail(Kind::corrupt, "page flags {:#x} make no sense", flags);
  }
  if (flags != 0) {  // what no range tells of has no content: a hole needs no word
    writer_->describe(command.vaddr, command.pages, flags);
  }
  if ((flags & image::kPresent) == 0) {
    return {};
  }
  for (std::uint64_t left = command.pages * image::kPageSize; left != 0;) {
    const auto take = static_cast<std::size_t>(std::min<std::uint64_t>(left, buffer_.size()));
    FERRY_CHECK(sys::read_exactly(socket, buffer_.data(), take, "a page server connection"));
    FERRY_CHECK(writer_->append(std::span(buffer_).first(take)));
    left -= take;
  }
  pages_ += command.pages;
  return {};
}

Result<void> SetReceiver::answer(int socket, const void* bytes, std::size_t size) const {
  if (::send(socket, bytes, size, MSG_NOSIGNAL) != static_cast<ssize_t>(size)) {
    return sys_fail("send(page server connection)");
  }
  return {};
}

Result<void> SetReceiver::finish_writer() {
  if (writer_ != nullptr) {
    FERRY_CHECK(writer_->finish());
    writer_.reset();
    destination_.reset();
  }
  return {};
}

// Only now: a directory that has the pagemaps has the pages as well.
Result<void> SetReceiver::save() {
  for (const image::Name name : set_.names()) {
    const std::string file = image::file_name(name);
    FERRY_TRY(const std::string bytes, image::encode_file(set_, name));
    if (::unlinkat(directory_, file.c_str(), 0) != 0 && errno != ENOENT) {
      return sys_fail(fmt::format("unlinkat({})", file));
    }
    FERRY_TRY(const UniqueFd out, sys::open_at(directory_, file, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0644));
    FERRY_CHECK(sys::write_all(out.get(), bytes.data(), bytes.size(), file));
  }
  return {};
}

bool SetReceiver::has_parent(image::Name pagemap) const {
  return ::faccessat(directory_, ("parent/" + image::file_name(pagemap)).c_str(), F_OK, 0) == 0;
}

}  // namespace ferry::lazy

// Pipes, and what a FIFO has in common with them: the bytes inside.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "state/file_kind.h"

namespace ferry::state {

std::unique_ptr<FileKind> make_pipe_kind();

struct PipeContent {
  std::uint32_t capacity = 0;       // F_GETPIPE_SZ, bytes
  std::vector<std::string> pieces;  // one for a byte stream, one for each packet
};
// What a pipe holds, which it holds afterwards too: tee(2) into a pipe of ours.
// `end` has to be readable.  Errors: unsupported if the pipe is larger than this process may make one.
Result<PipeContent> peek_pipe(int end, std::string_view subject);

// Appends `content` to the image `type` (pipes_data or fifo_data).
void add_pipe_content(image::Set& set, image::Type type, std::uint32_t pipe_id, const PipeContent& content);

// The entries of an image by the number of their pipe.
using PipeContents = std::map<std::uint32_t, std::vector<const image::Entry*>>;
PipeContents index_pipe_contents(const image::Set& set, image::Type type);

// Gives a new pipe its capacity and its bytes.  `writer`: the writing end, or both.
Result<void> fill_pipe(int writer, const std::vector<const image::Entry*>& content, const std::string& subject,
                       bool packets);

}  // namespace ferry::state

// Errors: one exception type, one line of text, one documented exit status.
#pragma once

#include <fmt/core.h>

#include <stdexcept>
#include <string>

namespace dropcycle {

// Exit statuses of every dropcycle command.
enum class Status : int {
  ok = 0,
  internal = 1,  // a broken invariant: a bug in Dropcycle
  usage = 2,     // wrong option, config key, value or layout
  input = 3,     // missing, damaged or unfitting input (shard, checkpoint, tokenizer, text under --strict)
  storage = 4,   // writing failed: disk full, quota, I/O error
  numeric = 5,   // NaN or infinity in loss or gradients
  peer = 6,      // another rank failed, or ranks disagree
  requeue = 75,  // stopped on request after committing a checkpoint: run the same command again to go on
};

// The message is one line: what happened, where (file:line:column, or file, dataset, offset), what was expected and
// what to do about it.
class Error : public std::runtime_error {
 public:
  Error(Status status, const std::string& message) : std::runtime_error(message), status_(status) {}
  Status status() const { return status_; }

 private:
  Status status_;
};

[[noreturn]] void throw_error(Status status, fmt::string_view format, fmt::format_args arguments);

// Throws Error{status, fmt::format(format, arguments...)}.
template <class... Arguments>
[[noreturn]] void fail(Status status, fmt::format_string<Arguments...> format, Arguments&&... arguments) {
  throw_error(status, format, fmt::make_format_args(arguments...));
}

// fail(Status::internal, ...) unless `condition` holds: for invariants and for sizes checked in constructors.
template <class... Arguments>
void require(bool condition, fmt::format_string<Arguments...> format, Arguments&&... arguments) {
  if (!condition) throw_error(Status::internal, format, fmt::make_format_args(arguments...));
}

}  // namespace dropcycle

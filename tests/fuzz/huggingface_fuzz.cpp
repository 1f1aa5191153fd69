// Made-up files for the readers of what comes from elsewhere: safetensors headers, their index and config.json. The
// first byte chooses one. What is refused must be refused with Error{input} in one line; what is read must be sound.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "dropcycle/checkpoint/huggingface.hpp"
#include "dropcycle/checkpoint/safetensors.hpp"
#include "dropcycle/core/error.hpp"
#include "dropcycle/core/log.hpp"

namespace dropcycle {
namespace {

void check(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "%s\n", what);
  std::abort();
}

// A whole file: length, header and data.
void read_weights(std::string_view file) {
  if (file.size() < 8) return;
  std::uint64_t length = 0;
  std::memcpy(&length, file.data(), sizeof length);
  if (length > file.size() - 8) return;
  const std::uint64_t data_bytes = file.size() - 8 - length;
  std::uint64_t position = 8 + length;
  for (const SafetensorsEntry& entry : parse_safetensors_header(file.substr(8, length), data_bytes, "FILE")) {
    check(entry.offset == position, "the tensors leave a hole or overlap");
    position += entry.size_bytes;
    check(position <= file.size(), "a tensor ends after its file");
    std::uint64_t elements = 1;
    for (const std::int64_t size : entry.shape) {
      check(size >= 0, "a size below zero");
      elements *= static_cast<std::uint64_t>(size);
    }
    check(elements <= entry.size_bytes, "more elements than bytes");
    check(elements > 0 || entry.size_bytes == 0, "bytes without elements");
  }
  check(position == file.size(), "the tensors aren't the whole file");
}

void read_index(std::string_view text) {
  for (const auto& [tensor, file] : parse_safetensors_index(text, "FILE")) {
    check(file.find('/') == std::string::npos && file.front() != '.', "a file outside of its folder");
    check(std::strlen(file.c_str()) == file.size(), "a file name with a zero in it");
  }
}

// What is read can be written, and is the same when it is read again.
void read_config(std::string_view text) {
  const HuggingFaceConfig config = parse_huggingface_config(text, "FILE");
  std::string exported;
  try {
    exported = huggingface_config(config.model, config.about, DType::f32);
  } catch (const Error&) {
    return;  // heads that transformers' own class refuses
  }
  const HuggingFaceConfig again = parse_huggingface_config(exported, "FILE");
  check(again.model == config.model, "an exported configuration is another one");
  check(again.about == config.about, "an exported configuration keeps other keys");
}

}  // namespace
}  // namespace dropcycle

extern "C" int LLVMFuzzerInitialize(int* /*count*/, char*** /*arguments*/) {
  dropcycle::set_log(dropcycle::LogLevel::error, "");
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  using namespace dropcycle;
  if (size == 0) return 0;
  const std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  try {
    if (data[0] == 'w') read_weights(rest);
    if (data[0] == 'i') read_index(rest);
    if (data[0] == 'c') read_config(rest);
  } catch (const Error& error) {
    check(error.status() == Status::input, "another error than Error{input}");
    for (const char* c = error.what(); *c != '\0'; ++c) {
      check(static_cast<unsigned char>(*c) >= 0x20 && *c != 0x7f, "a message with a control character");
    }
  }
  return 0;
}

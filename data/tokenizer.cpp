#include "dropcycle/data/tokenizer.hpp"

#include <fmt/format.h>

#include "dropcycle/core/digest.hpp"
#include "dropcycle/core/error.hpp"
#include "dropcycle/core/file.hpp"
#include "text_model.hpp"

namespace dropcycle {
namespace {

namespace fs = std::filesystem;

// The file that `path` means: itself, or of a folder its tokenizer.json, else its tokenizer.model.
fs::path resolve(const fs::path& path) {
  if (!fs::is_directory(path)) return path;
  for (const char* name : {"tokenizer.json", "tokenizer.model"}) {
    if (fs::is_regular_file(path / name)) return path / name;
  }
  fail(Status::input, "{}: the folder has no tokenizer.json and no tokenizer.model: name another file or folder",
       path.string());
}

}  // namespace

struct Tokenizer::State {
  fs::path path;
  std::string digest;
  bool json = false;
  std::unique_ptr<TextModel> model;
  TextModel::SpecialIds special;
};

Tokenizer::Tokenizer(const fs::path& path) : state_(std::make_unique<State>()) {
  state_->path = resolve(path);
  std::string bytes = read_file(state_->path);
  state_->digest = dropcycle::digest(bytes);
  const std::size_t first = bytes.find_first_not_of(" \t\r\n");
  state_->json = first < bytes.size() && bytes[first] == '{';
  state_->model = state_->json ? load_tokenizer_json(state_->path, std::move(bytes))
                               : load_sentencepiece(state_->path, std::move(bytes));
  state_->special = state_->model->special_ids();
}

Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

std::vector<std::int32_t> Tokenizer::encode(std::string_view text) const {
  std::vector<std::int32_t> ids;
  state_->model->encode(text, *state_->model->make_scratch(false), ids);
  return ids;
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids) const {
  for (const std::int32_t id : ids) {
    if (id < 0 || id >= vocab_size()) {
      fail(Status::input, "{}: token id {} can't be decoded: ids are 0 to {}", state_->path.string(), id,
           vocab_size() - 1);
    }
  }
  return state_->model->decode(ids);
}

std::int64_t Tokenizer::vocab_size() const { return state_->model->vocab_size(); }
std::int32_t Tokenizer::bos_id() const { return state_->special.bos; }
std::int32_t Tokenizer::eos_id() const { return state_->special.eos; }
std::int32_t Tokenizer::unk_id() const { return state_->special.unk; }
std::int32_t Tokenizer::pad_id() const { return state_->special.pad; }
const std::string& Tokenizer::digest() const { return state_->digest; }
const fs::path& Tokenizer::path() const { return state_->path; }
bool Tokenizer::is_sentencepiece() const { return !state_->json; }

std::string Tokenizer::piece(std::int32_t id) const {
  require(id >= 0 && id < vocab_size(), "token id {} is outside the vocabulary of {}", id, vocab_size());
  return state_->model->piece(id);
}

std::string Tokenizer::describe() const {
  return fmt::format(
      "tokenizer      {}\nvocabulary     {}\ndigest         {}\nunk bos eos pad {} {} {} {} (-1: none)\n{}",
      state_->path.string(), vocab_size(), digest(), unk_id(), bos_id(), eos_id(), pad_id(), state_->model->describe());
}

struct Encoder::State {
  const TextModel& model;
  std::unique_ptr<TextModel::Scratch> scratch;
};

Encoder::Encoder(const Tokenizer& tokenizer)
    : state_(std::make_unique<State>(State{*tokenizer.state_->model, tokenizer.state_->model->make_scratch(true)})) {}
Encoder::~Encoder() = default;
Encoder::Encoder(Encoder&&) noexcept = default;

void Encoder::encode(std::string_view text, std::vector<std::int32_t>& ids) {
  state_->model.encode(text, *state_->scratch, ids);
}

}  // namespace dropcycle

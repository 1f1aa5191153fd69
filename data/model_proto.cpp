#include "model_proto.hpp"

#include <cstring>

#include "dropcycle/core/error.hpp"

namespace dropcycle {
namespace {

// Reads the fields of one message, each a number or a run of bytes.
class Fields {
 public:
  Fields(std::string_view bytes, const std::string& name) : rest_(bytes), name_(name) {}

  bool next() {
    if (rest_.empty()) return false;
    const std::uint64_t key = varint();
    field_ = static_cast<int>(key >> 3);
    number_ = 0;
    bytes_ = {};
    switch (key & 7U) {
      case 0:
        number_ = varint();
        break;
      case 1:
        take(8);
        break;
      case 2:
        bytes_ = take(varint());
        break;
      case 5:
        bytes_ = take(4);
        break;
      default:
        damaged();
    }
    return true;
  }
  int field() const { return field_; }
  std::uint64_t number() const { return number_; }
  bool flag() const { return number_ != 0; }
  std::string_view bytes() const { return bytes_; }
  float real() const {
    float value = 0;
    if (bytes_.size() != sizeof value) damaged();
    std::memcpy(&value, bytes_.data(), sizeof value);
    return value;
  }

 private:
  [[noreturn]] void damaged() const {
    fail(Status::input, "{}: isn't a SentencePiece model: give the .model file of a tokenizer", name_);
  }
  std::uint64_t varint() {
    std::uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
      if (rest_.empty()) damaged();
      const auto byte = static_cast<unsigned char>(rest_.front());
      rest_.remove_prefix(1);
      value |= static_cast<std::uint64_t>(byte & 0x7fU) << shift;
      if (byte < 0x80U) return value;
    }
    damaged();
  }
  std::string_view take(std::uint64_t size) {
    if (size > rest_.size()) damaged();
    const std::string_view taken = rest_.substr(0, size);
    rest_.remove_prefix(size);
    return taken;
  }

  std::string_view rest_;
  const std::string& name_;
  int field_ = 0;
  std::uint64_t number_ = 0;
  std::string_view bytes_;
};

ModelProto::Piece parse_piece(std::string_view bytes, const std::string& name) {
  ModelProto::Piece piece;
  for (Fields fields(bytes, name); fields.next();) {
    if (fields.field() == 1) piece.text = fields.bytes();
    if (fields.field() == 2) piece.score = fields.real();
    if (fields.field() == 3) piece.type = static_cast<ModelProto::PieceType>(fields.number());
  }
  return piece;
}

void parse_trainer(std::string_view bytes, const std::string& name, ModelProto& model) {
  for (Fields fields(bytes, name); fields.next();) {
    if (fields.field() == 3) model.model_type = static_cast<int>(fields.number());
    if (fields.field() == 24) model.whitespace_as_suffix = fields.flag();
    if (fields.field() == 35) model.byte_fallback = fields.flag();
  }
}

void parse_normalizer(std::string_view bytes, const std::string& name, ModelProto& model) {
  for (Fields fields(bytes, name); fields.next();) {
    if (fields.field() == 2) model.changes_characters = !fields.bytes().empty();
    if (fields.field() == 3) model.add_dummy_prefix = fields.flag();
    if (fields.field() == 4) model.remove_extra_whitespaces = fields.flag();
    if (fields.field() == 5) model.escape_whitespaces = fields.flag();
  }
}

}  // namespace

ModelProto parse_model_proto(std::string_view bytes, const std::string& name) {
  ModelProto model;
  for (Fields fields(bytes, name); fields.next();) {
    if (fields.field() == 1) model.pieces.push_back(parse_piece(fields.bytes(), name));
    if (fields.field() == 2) parse_trainer(fields.bytes(), name, model);
    if (fields.field() == 3) parse_normalizer(fields.bytes(), name, model);
  }
  return model;
}

}  // namespace dropcycle

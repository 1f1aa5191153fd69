#include "token_decoder.hpp"

#include <fmt/format.h>

#include <charconv>
#include <optional>

#include "byte_letters.hpp"
#include "utf8.hpp"

namespace dropcycle {
namespace {

using Pieces = std::vector<std::string>;

std::string joined(const Pieces& pieces) {
  std::string text;
  for (const auto& piece : pieces) text += piece;
  return text;
}

std::string from_letters(const Pieces& pieces) {
  std::string bytes, repaired;
  for (const auto& piece : pieces) bytes += bytes_of_letters(piece).value_or(piece);
  return std::string(whole_utf8(bytes, repaired));
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  for (std::size_t place = text.find(from); place != std::string::npos; place = text.find(from, place + to.size())) {
    text.replace(place, from.size(), to);
  }
  return text;
}

std::optional<char> byte_of_piece(const std::string& piece) {
  if (piece.size() != 6 || !piece.starts_with("<0x") || piece.back() != '>') return std::nullopt;
  unsigned value = 0;
  const auto [end, error] = std::from_chars(piece.data() + 3, piece.data() + 5, value, 16);
  if (error != std::errc{} || end != piece.data() + 5) return std::nullopt;
  return static_cast<char>(value);
}

Pieces with_bytes_joined(const Pieces& pieces) {
  Pieces result;
  std::string bytes;
  const auto flush = [&] {
    if (first_invalid_utf8(bytes) == bytes.size()) {
      if (!bytes.empty()) result.push_back(bytes);
    } else {
      result.insert(result.end(), bytes.size(), std::string(kReplacement));
    }
    bytes.clear();
  };
  for (const auto& piece : pieces) {
    if (const auto byte = byte_of_piece(piece)) {
      bytes += *byte;
      continue;
    }
    flush();
    result.push_back(piece);
  }
  flush();
  return result;
}

std::string stripped(std::string_view text, const DecoderStep& step) {
  for (std::size_t i = 0; i < step.start && text.starts_with(step.from); ++i) text.remove_prefix(step.from.size());
  for (std::size_t i = 0; i < step.stop && text.ends_with(step.from); ++i) text.remove_suffix(step.from.size());
  return std::string(text);
}

}  // namespace

std::string decode_pieces(const std::vector<DecoderStep>& steps, std::vector<std::string> pieces) {
  if (steps.empty()) return fmt::format("{}", fmt::join(pieces, " "));
  for (const auto& step : steps) {
    switch (step.kind) {
      case DecoderStep::Kind::bytes:
        pieces = {from_letters(pieces)};
        break;
      case DecoderStep::Kind::replace:
        for (auto& piece : pieces) piece = replaced(std::move(piece), step.from, step.to);
        break;
      case DecoderStep::Kind::byte_pieces:
        pieces = with_bytes_joined(pieces);
        break;
      case DecoderStep::Kind::fuse:
        pieces = {joined(pieces)};
        break;
      case DecoderStep::Kind::strip:
        for (auto& piece : pieces) piece = stripped(piece, step);
        break;
      case DecoderStep::Kind::space_signs:
        for (std::size_t i = 0; i < pieces.size(); ++i) {
          pieces[i] = replaced(std::move(pieces[i]), step.from, i == 0 && step.start == 1 ? "" : " ");
        }
        break;
    }
  }
  return joined(pieces);
}

}  // namespace dropcycle

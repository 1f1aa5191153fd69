#include "checks.hpp"

#include <algorithm>
#include <numeric>

namespace dropcycle {

std::int64_t bytes_of_row(const GroupPlace& place, const Tensor& x) {
  require(x.shape.dims() >= 1, "group {}: rows of a scalar", place.group);
  return Shape(x.shape.sizes().subspan(1)).elements() * size_bytes(x.dtype);
}

void check_even(const GroupPlace& place, const Tensor& own, const Tensor& all, std::string_view call) {
  require(own.dtype == all.dtype && all.elements() == place.size * own.elements(),
          "group {}: {} between {} {} of a rank and {} {} of {}", place.group, call, name(own.dtype),
          to_string(own.shape), name(all.dtype), to_string(all.shape), place.size);
}

void check_rows(const GroupPlace& place, const Tensor& own, std::span<const std::int64_t> counts, const Tensor& all,
                std::string_view call) {
  require(std::ssize(counts) == place.size && own.dtype == all.dtype &&
              bytes_of_row(place, own) == bytes_of_row(place, all) &&
              std::ranges::none_of(counts, [](std::int64_t rows) { return rows < 0; }) &&
              own.shape[0] == counts[static_cast<std::size_t>(place.rank)] &&
              all.shape[0] == std::reduce(counts.begin(), counts.end()),
          "group {}: {} between {} {} of a rank and {} {} of {}, {} counts", place.group, call, name(own.dtype),
          to_string(own.shape), name(all.dtype), to_string(all.shape), place.size, counts.size());
}

std::int64_t check_exchange(const GroupPlace& place, const Tensor& x, std::span<const std::int64_t> send,
                            const Tensor& out, std::span<const std::int64_t> recv) {
  const std::int64_t row_bytes = bytes_of_row(place, x);
  require(x.dtype == out.dtype && row_bytes == bytes_of_row(place, out), "group {}: all_to_all of {} {} into {} {}",
          place.group, name(x.dtype), to_string(x.shape), name(out.dtype), to_string(out.shape));
  const auto check_side = [&](std::span<const std::int64_t> rows, const Tensor& tensor, std::string_view direction) {
    require(std::ssize(rows) == place.size, "group {}: all_to_all of {} counts for {} ranks", place.group, rows.size(),
            place.size);
    require(std::ranges::none_of(rows, [](std::int64_t count) { return count < 0; }) &&
                std::reduce(rows.begin(), rows.end()) <= tensor.shape[0],
            "group {}: counts of {} rows are {} a tensor {}", place.group, std::reduce(rows.begin(), rows.end()),
            direction, to_string(tensor.shape));
  };
  check_side(send, x, "sent from");
  check_side(recv, out, "received into");
  const auto own = static_cast<std::size_t>(place.rank);
  require(send[own] == recv[own], "group {}: all_to_all of {} rows to itself, {} expected", place.group, send[own],
          recv[own]);
  return row_bytes;
}

void check_peer(const GroupPlace& place, int peer, std::string_view call) {
  require(peer >= 0 && peer < place.size && peer != place.rank, "group {}: {} between rank {} and {} of {}",
          place.group, call, place.rank, peer, place.size);
}

void check_summable(const Tensor& x) {
  require(x.dtype == DType::f64 || x.dtype == DType::f32 || x.dtype == DType::i32,
          "a reduction of {}: expected f64, f32 or i32", name(x.dtype));
}

std::vector<Piece> even_pieces(std::int64_t elements, int ranks) {
  std::vector<Piece> pieces;
  for (int r = 0; r < ranks; ++r) pieces.push_back(piece_of(elements, r, ranks));
  return pieces;
}

std::vector<Piece> pieces_of(std::span<const std::int64_t> counts, std::int64_t unit) {
  std::vector<Piece> pieces;
  for (const std::int64_t count : counts) {
    pieces.push_back({pieces.empty() ? 0 : pieces.back().first + pieces.back().count, count * unit});
  }
  return pieces;
}

}  // namespace dropcycle

// What communicators check of their tensors before another rank hears of the call, for the .cpp files of this folder.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "dropcycle/parallel/communicator.hpp"

namespace dropcycle {

struct GroupPlace {
  std::string_view group;
  int rank, size;
};

// All throw Error{internal} that names group, call and shapes.

// Bytes of one row, known of a tensor without rows too.
std::int64_t bytes_of_row(const GroupPlace& place, const Tensor& x);
// `all` holds as many elements as the ranks' `own` together.
void check_even(const GroupPlace& place, const Tensor& own, const Tensor& all, std::string_view call);
// `all` holds the rows of all ranks, `own` those of this one.
void check_rows(const GroupPlace& place, const Tensor& own, std::span<const std::int64_t> counts, const Tensor& all,
                std::string_view call);
// Of an all_to_all. Returns the bytes of a row.
std::int64_t check_exchange(const GroupPlace& place, const Tensor& x, std::span<const std::int64_t> send,
                            const Tensor& out, std::span<const std::int64_t> recv);
void check_peer(const GroupPlace& place, int peer, std::string_view call);
// Of a sum.
void check_summable(const Tensor& x);
// piece_of every rank.
std::vector<Piece> even_pieces(std::int64_t elements, int ranks);
// One after another, counts[r] times `unit` for rank r.
std::vector<Piece> pieces_of(std::span<const std::int64_t> counts, std::int64_t unit);

}  // namespace dropcycle

// Times of bare matrix products in bf16 with fp32 sums: each by the fastest of many ways, which are oneDNN with
// operands in row-major and in its own layouts, whole or in blocks of rows, threads inside a product or a block for
// each thread; and the cpu backend's operation. Packing and transposing are not in the time: only products are. A
// product is measured once.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace dropcycle::bench {

struct Time {
  double seconds = 0;
  std::string way = {};  // how it was reached
};

class Products {
 public:
  Products();  // on all threads that the process may run on
  ~Products();

  // y[m,n] = x[m,k] w, bf16. `copies`: how many different operands take turns (weights of layers and experts), fewer
  // where 64 MB hold them.
  Time forward(std::int64_t m, std::int64_t n, std::int64_t k, std::int64_t copies);
  // dw[n,k] = dyᵀ x over m rows; dw is fp32.
  Time gradient(std::int64_t m, std::int64_t n, std::int64_t k, std::int64_t copies);

  // The products of causal attention over batch * heads heads of S places and D columns, a head for each thread, in
  // panels of queries that see the keys up to their end (forward: q kᵀ, p v; backward: q kᵀ, do vᵀ, pᵀ do, ds k, dsᵀ
  // q).
  struct Attention {
    Time forward, backward;
    double own_forward = 0, own_backward = 0;  // seconds of the cpu backend's whole operations
  };
  Attention attention(std::int64_t batch, std::int64_t heads, std::int64_t sequence, std::int64_t head_size);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace dropcycle::bench

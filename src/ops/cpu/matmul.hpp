// Matrix products of oneDNN with kept primitives. The only file that knows oneDNN is matmul.cpp.
//
// Bits do not depend on the number of threads. With AVX-512 oneDNN keeps every sum on one thread by itself; without it,
// it would cut sums by the number of threads, so that tasks, cut by sizes alone, run on one thread each.
//
// Creating a primitive takes about half a millisecond, so primitives are kept, keyed on all that they depend on.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "instruction_set.hpp"

namespace dropcycle::cpu {

// c[m,n] = a[m,k] b[k,n], sums in float.
enum class Product : std::uint8_t {
  forward,   // y = x wᵀ: a = x, b = packed w [n,k], c = y
  backward,  // dx = dy w: a = dy, b = packed w [k,n], c = dx
  gradient,  // dw += dyᵀ x: a = dy stored as [k,m], b = x [k,n], c = dw, float, added to
};

struct MatmulKey {
  Product product = Product::forward;
  Type in = Type::f32;   // of a and b
  Type out = Type::f32;  // of c
  std::int64_t m = 0, n = 0, k = 0;
  std::int64_t a_stride = 0;  // of gradient: elements from row to row of dy; 0 is m
  bool one_thread = false;
  bool operator==(const MatmulKey&) const = default;
};

// A product for one thread, over `rows` tokens: m of forward and backward, k of gradient. Any number of them is cut
// into pieces of a few sizes, so that a bounded number of primitives serves all; what is left over is padded.
struct MatmulTask {
  MatmulKey key;  // without the number of tokens
  const std::byte* a = nullptr;
  const std::byte* b = nullptr;
  std::byte* c = nullptr;
  std::int64_t rows = 0;
};

class Matmul {
 public:
  Matmul(InstructionSet set, const Kernels& kernels);
  ~Matmul();
  Matmul(const Matmul&) = delete;
  Matmul& operator=(const Matmul&) = delete;

  // Bytes of one packed weight [outputs, inputs], a multiple of 64.
  std::int64_t packed_bytes(Product product, Type type, std::int64_t outputs, std::int64_t inputs);
  // Writes w in the layout that oneDNN likes best for `product` (forward or backward).
  void pack(Product product, Type type, std::int64_t outputs, std::int64_t inputs, const void* w, void* packed);
  // One product, shared out among all threads. m, n and k are at least 1.
  void run(const MatmulKey& key, const void* a, const void* b, void* c);
  // Tasks that write different memory, each by the next free thread.
  void run(std::span<const MatmulTask> tasks);

 private:
  struct State;
  const Kernels& kernels_;
  std::unique_ptr<State> state_;
};

}  // namespace dropcycle::cpu

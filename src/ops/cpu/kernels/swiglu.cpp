// y = silu(gate) * up and its adjoint. Limit: memory bandwidth; Zen 4 reaches 0.9 to 1.1 of it (dropcycle bench ops).
#include "vectors.hpp"

namespace dropcycle::cpu::DROPCYCLE_ISA {
namespace {

template <class T>
Vector silu(Vector g) {
  return g * sigmoid_for(T{}, g);
}

template <bool kStream, class T>
void swiglu_rows(const T* gate_up, T* y, std::int64_t rows, std::int64_t width) {
#pragma omp parallel for schedule(static) if (rows * width > kParallelElements)
  for (std::int64_t t = 0; t < rows; ++t) {
    const T* gate = gate_up + 2 * t * width;
    const T* up = gate + width;
    T* out = y + t * width;
    by_two(width, [&](std::int64_t f, auto two) {
      const Two g = two.load(gate + f, 2 * width), u = two.load(up + f, 2 * width);
      two.template store<kStream>(out + f, {silu<T>(g.first) * u.first, silu<T>(g.second) * u.second});
    });
  }
}

// silu(g) = g s with s = 1 / (1 + e^-g); silu'(g) = s (1 + g (1 - s)).
struct Gradients {
  Vector gate, up, y;  // y has the bits of forward
};
template <class T>
Gradients gradients_of(Vector g, Vector u, Vector d) {
  const Vector s = sigmoid_for(T{}, g), silu = g * s;
  return {d * u * (s + silu * (1.0F - s)), d * silu, silu * u};
}

template <bool kRecompute, bool kStream, class T>
void swiglu_gradient_rows(const T* dy, const T* gate_up, T* dgate_up, T* y, std::int64_t rows, std::int64_t width) {
#pragma omp parallel for schedule(static) if (rows * width > kParallelElements)
  for (std::int64_t t = 0; t < rows; ++t) {
    const T* gate = gate_up + 2 * t * width;
    const T* up = gate + width;
    T* dgate = dgate_up + 2 * t * width;
    T* dup = dgate + width;
    const T* gradient = dy + t * width;
    T* out = y + t * width;
    by_two(width, [&](std::int64_t f, auto two) {
      const Two g = two.load(gate + f, 2 * width), u = two.load(up + f, 2 * width), d = two.load(gradient + f, width);
      const Gradients first = gradients_of<T>(g.first, u.first, d.first);
      const Gradients second = gradients_of<T>(g.second, u.second, d.second);
      two.template store<kStream>(dgate + f, {first.gate, second.gate});
      two.template store<kStream>(dup + f, {first.up, second.up});
      if constexpr (kRecompute) two.template store<kStream>(out + f, {first.y, second.y});
    });
  }
}

}  // namespace

void swiglu(Type type, const void* gate_up, void* y, std::int64_t rows, std::int64_t width) {
  with_type(type, [&]<class T>(T) {
    const bool stream = past_caches(y, rows, width * static_cast<std::int64_t>(sizeof(T)));
    (stream ? swiglu_rows<true, T> : swiglu_rows<false, T>)(static_cast<const T*>(gate_up), static_cast<T*>(y), rows,
                                                            width);
  });
}

void swiglu_backward(Type type, const void* dy, const void* gate_up, void* dgate_up, void* y, std::int64_t rows,
                     std::int64_t width) {
  with_type(type, [&]<class T>(T) {
    const std::int64_t row_bytes = width * static_cast<std::int64_t>(sizeof(T));
    const bool again = y != nullptr;
    const bool in_place = dgate_up == gate_up || y == dy;  // lines that were just read
    const bool stream =
        !in_place && past_caches(dgate_up, rows, row_bytes) && (!again || past_caches(y, rows, row_bytes));
    const auto run = again ? (stream ? swiglu_gradient_rows<true, true, T> : swiglu_gradient_rows<true, false, T>)
                           : (stream ? swiglu_gradient_rows<false, true, T> : swiglu_gradient_rows<false, false, T>);
    run(static_cast<const T*>(dy), static_cast<const T*>(gate_up), static_cast<T*>(dgate_up), static_cast<T*>(y), rows,
        width);
  });
}

}  // namespace dropcycle::cpu::DROPCYCLE_ISA

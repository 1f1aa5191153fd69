// y = silu(gate) * up and its adjoint. Limit: memory bandwidth (about 20 flops an element besides).
#include "common.hpp"

namespace dropcycle::cpu::DROPCYCLE_ISA {
namespace {

template <class T>
void forward(const T* gate_up, T* y, std::int64_t rows, std::int64_t width) {
#pragma omp parallel for schedule(static) if (rows * width > kParallelElements)
  for (std::int64_t t = 0; t < rows; ++t) {
    const T* gate = gate_up + 2 * t * width;
    const T* up = gate + width;
    T* out = y + t * width;
#pragma omp simd
    for (std::int64_t f = 0; f < width; ++f) {
      const float g = load(gate[f]);
      store(out[f], g / (1.0F + exp_fast(-g)) * load(up[f]));
    }
  }
}

// silu(g) = g s with s = 1 / (1 + e^-g); silu'(g) = s (1 + g (1 - s)).
template <class T, bool kRecompute>
void backward(const T* dy, const T* gate_up, T* dgate_up, T* y, std::int64_t rows, std::int64_t width) {
#pragma omp parallel for schedule(static) if (rows * width > kParallelElements)
  for (std::int64_t t = 0; t < rows; ++t) {
    const T* gate = gate_up + 2 * t * width;
    const T* up = gate + width;
    T* dgate = dgate_up + 2 * t * width;
    T* dup = dgate + width;
    const T* gradient = dy + t * width;
    T* out = y + t * width;
#pragma omp simd
    for (std::int64_t f = 0; f < width; ++f) {
      const float g = load(gate[f]);
      const float u = load(up[f]);
      const float d = load(gradient[f]);
      const float divisor = 1.0F + exp_fast(-g);
      const float s = 1.0F / divisor;
      store(dgate[f], d * u * s * (1.0F + g * (1.0F - s)));
      store(dup[f], d * g * s);
      if constexpr (kRecompute) store(out[f], g / divisor * u);  // the bits of forward
    }
  }
}

}  // namespace

void swiglu(Type type, const void* gate_up, void* y, std::int64_t rows, std::int64_t width) {
  with_type(type, [&]<class T>(T) { forward(static_cast<const T*>(gate_up), static_cast<T*>(y), rows, width); });
}

void swiglu_backward(Type type, const void* dy, const void* gate_up, void* dgate_up, void* y, std::int64_t rows,
                     std::int64_t width) {
  with_type(type, [&]<class T>(T) {
    const auto* gradient = static_cast<const T*>(dy);
    const auto* input = static_cast<const T*>(gate_up);
    if (y != nullptr) {
      backward<T, true>(gradient, input, static_cast<T*>(dgate_up), static_cast<T*>(y), rows, width);
    } else {
      backward<T, false>(gradient, input, static_cast<T*>(dgate_up), static_cast<T*>(dgate_up), rows, width);
    }
  });
}

}  // namespace dropcycle::cpu::DROPCYCLE_ISA

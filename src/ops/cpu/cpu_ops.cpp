#include "cpu_ops.hpp"

#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "../host_operations.hpp"
#include "dropcycle/core/error.hpp"
#include "dropcycle/ops/backends.hpp"

namespace dropcycle {

namespace cpu {
namespace {

// The processors that this process may run on (its affinity mask), not all of the machine's.
int available_processors() {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  if (sched_getaffinity(0, sizeof(mask), &mask) != 0) return omp_get_num_procs();
  return CPU_COUNT(&mask);
}

InstructionSet start(const OpsOptions& options) {
  omp_set_num_threads(options.threads > 0 ? options.threads : available_processors());
  return instruction_set();
}

// Rows and width of a tensor seen as a matrix.
std::int64_t width_of(const Tensor& x) { return x.shape[x.shape.dims() - 1]; }
std::int64_t rows_of(const Tensor& x) { return width_of(x) == 0 ? 0 : x.elements() / width_of(x); }

float* floats(const Tensor& x) { return x ? x.as<float>() : nullptr; }
std::int32_t* integers(const Tensor& x) { return x ? x.as<std::int32_t>() : nullptr; }
void* start(const Columns& x) { return static_cast<std::byte*>(x.matrix.data) + x.first * size_bytes(x.matrix.dtype); }
std::int64_t stride(const Columns& x) { return x.matrix.shape[1]; }

void check_indices(const Tensor& index, std::int64_t lowest, std::int64_t end, const char* what) {
  const auto* values = index.as<std::int32_t>();
  const std::int64_t n = index.elements();
  bool good = true;
  for (std::int64_t i = 0; i < n; ++i) good = good && values[i] >= lowest && values[i] < end;
  require(good, "{}: an index lies outside [{}, {})", what, lowest, end);
}

}  // namespace

CpuOps::CpuOps(const OpsOptions& options)
    : set_(start(options)),
      bf16_attention_(multiplies_bf16()),
      bf16_kernels_(bf16_kernels()),
      kernels_(kernels_for(set_)),
      products_(set_, kernels_, bf16_kernels_) {}

void CpuOps::linear(const Tensor& x, const Weight& w, const Tensor& y) {
  const std::array<std::int64_t, 2> offsets{0, rows_of(x)};
  products_.multiply(Product::forward, x, offsets, w, y);
}

void CpuOps::linear_dx(const Tensor& dy, const Weight& w, const Tensor& dx) {
  const std::array<std::int64_t, 2> offsets{0, rows_of(dy)};
  products_.multiply(Product::backward, dy, offsets, w, dx);
}

void CpuOps::linear_dw(const Tensor& dy, const Tensor& x, const Tensor& dw) {
  const std::array<std::int64_t, 2> offsets{0, rows_of(dy)};
  products_.gradient(dy, x, offsets, dw);
}

void CpuOps::grouped_linear(const Tensor& x, std::span<const std::int64_t> offsets, const Weight& w, const Tensor& y) {
  products_.multiply(Product::forward, x, offsets, w, y);
}

void CpuOps::grouped_linear_dx(const Tensor& dy, std::span<const std::int64_t> offsets, const Weight& w,
                               const Tensor& dx) {
  products_.multiply(Product::backward, dy, offsets, w, dx);
}

void CpuOps::grouped_linear_dw(const Tensor& dy, const Tensor& x, std::span<const std::int64_t> offsets,
                               const Tensor& dw) {
  products_.gradient(dy, x, offsets, dw);
}

void CpuOps::fill_zero(const Tensor& x) {
  constexpr std::int64_t kParallelBytes = 1 << 20;
  auto* bytes = static_cast<std::byte*>(x.data);
  const std::int64_t total = x.bytes(), parts = total > kParallelBytes ? omp_get_max_threads() : 1;
  // In few large pieces: memset() writes past the caches what wouldn't fit into them, twice as fast.
#pragma omp parallel for schedule(static) num_threads(static_cast <int>(parts))
  for (std::int64_t part = 0; part < parts; ++part) {
    const std::int64_t first = total * part / parts, last = total * (part + 1) / parts;
    std::memset(bytes + first, 0, static_cast<std::size_t>(last - first));
  }
}

void CpuOps::convert(const Tensor& x, const Tensor& out) {
  kernels_.convert(type_of(x), x.data, type_of(out), out.data, x.elements());
}

void CpuOps::split_masters(const Tensor& masters, const Tensor& weight, const Tensor& low) {
  kernels_.split_masters(masters.as<float>(), weight.as<BF16>(), low ? low.as<std::int16_t>() : nullptr,
                         masters.elements());
}

void CpuOps::join_masters(const Tensor& weight, const Tensor& low, const Tensor& masters) {
  kernels_.join_masters(weight.as<BF16>(), low.as<std::int16_t>(), masters.as<float>(), masters.elements());
}

void CpuOps::copy_columns(const Columns& x, const Columns& out, std::int64_t width) {
  require(x.first + width <= stride(x) && out.first + width <= stride(out) && rows_of(x.matrix) == rows_of(out.matrix),
          "copy_columns: {} columns from {} on of {} into {} on of {}", width, x.first, to_string(x.matrix.shape),
          out.first, to_string(out.matrix.shape));
  kernels_.copy_columns(type_of(x.matrix), start(x), stride(x), type_of(out.matrix), start(out), stride(out),
                        rows_of(x.matrix), width);
}

void CpuOps::add(const Tensor& a, const Tensor& b, const Tensor& y) {
  kernels_.add(type_of(y), a.data, b.data, y.data, y.elements());
}

void CpuOps::jitter(const Tensor& x, const RandomStream& stream, std::uint64_t first, double amplitude,
                    const Tensor& y) {
  const std::int64_t n = x.elements();
  const auto scale = [&](std::int64_t i) {
    return 1.0 + amplitude * (2.0 * stream.uniform(first + static_cast<std::uint64_t>(i)) - 1.0);
  };
  if (type_of(x) == Type::f32) {
    const auto* in = x.as<float>();
    auto* out = y.as<float>();
#pragma omp parallel for schedule(static)
    for (std::int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(in[i] * scale(i));
  } else {
    const auto* in = x.as<BF16>();
    auto* out = y.as<BF16>();
#pragma omp parallel for schedule(static)
    for (std::int64_t i = 0; i < n; ++i) out[i] = BF16(static_cast<float>(static_cast<float>(in[i]) * scale(i)));
  }
}

void CpuOps::fill_normal(const RandomStream& stream, std::uint64_t first, double mean, double standard_deviation,
                         const Tensor& out) {
  fill_normal_on_host(stream, first, mean, standard_deviation, out);
}

void CpuOps::embedding(const Tensor& tokens, const Tensor& w, const Tensor& y) {
  check_indices(tokens, INT32_MIN, w.shape[0], "embedding");
  kernels_.gather_rows(type_of(w), w.data, tokens.as<std::int32_t>(), Type::f32, y.data, rows_of(y), width_of(y));
}

void CpuOps::embedding_backward(const Tensor& dy, const Tensor& tokens, const Tensor& dw) {
  check_indices(tokens, INT32_MIN, dw.shape[0], "embedding_backward");
  kernels_.embedding_backward(type_of(dy), dy.data, tokens.as<std::int32_t>(), dw.as<float>(), rows_of(dy),
                              width_of(dy));
}

void CpuOps::add_rms_norm(const Tensor& x, const Tensor& delta, const Tensor& w, double epsilon, const Tensor& sum,
                          const Tensor& y, const Tensor& inv_rms) {
  kernels_.add_rms_norm(type_of(y), x.as<float>(), floats(delta), w.as<float>(), static_cast<float>(epsilon),
                        floats(sum), y.data, inv_rms.as<float>(), rows_of(x), width_of(x));
}

void CpuOps::rms_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& inv_rms,
                               const Tensor& dresidual, const Tensor& dx, const Tensor& dw) {
  auto* scratch = partial_sums_.array<float>(kReductionChunks * width_of(x));
  kernels_.rms_norm_backward(dy.as<float>(), x.as<float>(), w.as<float>(), inv_rms.as<float>(), floats(dresidual),
                             dx.as<float>(), dw.as<float>(), scratch, rows_of(x), width_of(x));
}

void CpuOps::extend_rotary_table(const Tensor& inverse_frequencies, std::int64_t positions) {
  const std::span<const double> frequencies(inverse_frequencies.as<double>(),
                                            static_cast<std::size_t>(inverse_frequencies.elements()));
  if (!std::ranges::equal(frequencies, rotary_.frequencies)) {
    rotary_ = {};
    rotary_.frequencies.assign(frequencies.begin(), frequencies.end());
  }
  if (positions <= rotary_.positions) return;
  const auto half = static_cast<std::int64_t>(frequencies.size());
  rotary_.cosines.resize(static_cast<std::size_t>(positions * half));
  rotary_.sines.resize(static_cast<std::size_t>(positions * half));
#pragma omp parallel for schedule(static)
  for (std::int64_t i = rotary_.positions * half; i < positions * half; ++i) {
    const double angle = static_cast<double>(i / half) * rotary_.frequencies[static_cast<std::size_t>(i % half)];
    rotary_.cosines[static_cast<std::size_t>(i)] = static_cast<float>(std::cos(angle));
    rotary_.sines[static_cast<std::size_t>(i)] = static_cast<float>(std::sin(angle));
  }
  rotary_.positions = positions;
}

void CpuOps::rope(const Tensor& x, const Tensor& positions, const Tensor& inverse_frequencies, std::int64_t head_size,
                  std::int64_t rotated_heads, int direction) {
  const auto* places = positions.as<std::int32_t>();
  const std::int64_t rows = positions.elements();
  if (rows == 0) return;
  const auto [lowest, highest] = std::minmax_element(places, places + rows);
  require(*lowest >= 0, "rope: position {} is negative", *lowest);
  extend_rotary_table(inverse_frequencies, *highest + 1);
  kernels_.rope(type_of(x), x.data, places, rotary_.cosines.data(), rotary_.sines.data(), static_cast<float>(direction),
                rows, x.elements() / rows, rotated_heads, head_size);
}

namespace {

AttentionArguments attention_arguments(const AttentionShape& shape, const AttentionHeads& x, const AttentionMask& mask,
                                       const Tensor& out, const Tensor& lse) {
  AttentionArguments a{};
  a.batch = shape.batch;
  a.queries = shape.sequence;
  a.keys = shape.key_count();
  a.heads = shape.heads;
  a.kv_heads = shape.kv_heads;
  a.head_size = shape.head_size;
  a.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(shape.head_size)));
  a.q = start(x.q);
  a.k = start(x.k);
  a.v = start(x.v);
  a.q_stride = stride(x.q);
  a.k_stride = stride(x.k);
  a.v_stride = stride(x.v);
  a.first_key = integers(mask.first_key);
  a.last_key = integers(mask.last_key);
  a.out = out.data;
  a.lse = floats(lse);
  return a;
}

}  // namespace

void CpuOps::run_attention(Type type, AttentionArguments& a, bool backwards) {
  if (a.queries == 0 || a.batch == 0) return;
  const std::int64_t threads = omp_get_max_threads();
  const bool bf16 = type == Type::bf16 && bf16_attention_;
  std::int64_t bytes = 0;
  if (bf16) {
    bf16_kernels_.attention_scratch(a, backwards, threads, bytes);
  } else {
    kernels_.attention_scratch(a, backwards, threads, bytes);
  }
  a.scratch = attention_scratch_.bytes(bytes);
  if (bf16) {
    backwards ? bf16_kernels_.attention_backward(a) : bf16_kernels_.attention(a);
  } else {
    backwards ? kernels_.attention_backward(type, a) : kernels_.attention(type, a);
  }
}

void CpuOps::attention(const AttentionShape& shape, const AttentionHeads& x, const AttentionMask& mask,
                       const Tensor& out, const Tensor& lse) {
  auto arguments = attention_arguments(shape, x, mask, out, lse);
  run_attention(type_of(out), arguments, false);
}

void CpuOps::attention_backward(const AttentionShape& shape, const AttentionHeads& x, const AttentionMask& mask,
                                const Tensor& out, const Tensor& lse, const Tensor& dout, const AttentionHeads& dx) {
  auto arguments = attention_arguments(shape, x, mask, out, lse);
  arguments.dout = dout.data;
  arguments.dq = start(dx.q);
  arguments.dk = start(dx.k);
  arguments.dv = start(dx.v);
  arguments.dq_stride = stride(dx.q);
  arguments.dk_stride = stride(dx.k);
  arguments.dv_stride = stride(dx.v);
  arguments.dkv_type = type_of(dx.k.matrix);
  run_attention(type_of(out), arguments, true);
}

void CpuOps::swiglu(const Tensor& gate_up, const Tensor& y) {
  kernels_.swiglu(type_of(y), gate_up.data, y.data, rows_of(y), width_of(y));
}

void CpuOps::swiglu_backward(const Tensor& dy, const Tensor& gate_up, const Tensor& dgate_up, const Tensor& y) {
  kernels_.swiglu_backward(type_of(dy), dy.data, gate_up.data, dgate_up.data, y.data, rows_of(dy), width_of(dy));
}

void CpuOps::router_logits(const Tensor& x, const Tensor& w, const Tensor& logits) {
  kernels_.router_logits(type_of(x), x.data, w.as<float>(), logits.as<float>(), rows_of(x), width_of(x), w.shape[0]);
}

void CpuOps::router_logits_backward(const Tensor& dlogits, const Tensor& x, const Tensor& w, const Tensor& dx,
                                    const Tensor& dw) {
  kernels_.router_logits_backward(type_of(x), dlogits.as<float>(), x.data, w.as<float>(), dx.as<float>(),
                                  dw.as<float>(), rows_of(x), width_of(x), w.shape[0]);
}

void CpuOps::route(const Tensor& logits, RouterMode mode, const Tensor& experts, const Tensor& weights,
                   const Tensor& probabilities, const Tensor& lse) {
  kernels_.route(mode == RouterMode::softmax_topk, logits.as<float>(), experts.as<std::int32_t>(), weights.as<float>(),
                 probabilities.as<float>(), lse.as<float>(), rows_of(logits), width_of(logits), width_of(experts));
}

void CpuOps::route_backward(RouterMode mode, const Tensor& experts, const Tensor& weights, const Tensor& probabilities,
                            const Tensor& lse, const Tensor& dweights, const Tensor& dprobabilities, double z,
                            const Tensor& dlogits) {
  kernels_.route_backward(mode == RouterMode::softmax_topk, experts.as<std::int32_t>(), weights.as<float>(),
                          probabilities.as<float>(), lse.as<float>(), dweights.as<float>(), floats(dprobabilities),
                          static_cast<float>(z), dlogits.as<float>(), rows_of(dlogits), width_of(dlogits),
                          width_of(experts));
}

void CpuOps::sum_rows(const Tensor& x, const Tensor& out) {
  kernels_.sum_rows(x.as<float>(), out.as<float>(), rows_of(x), width_of(x));
}

void CpuOps::sort_rows(const Tensor& experts, const Tensor& counts, const Tensor& token_of_row, const Tensor& slots) {
  sort_rows_on_host(experts, counts, token_of_row, slots);
}

void CpuOps::gather_rows(const Tensor& x, const Tensor& index, const Tensor& out) {
  check_indices(index, 0, x.shape[0], "gather_rows");
  kernels_.gather_rows(type_of(x), x.data, index.as<std::int32_t>(), type_of(out), out.data, rows_of(out), width_of(x));
}

void CpuOps::combine(const Tensor& z, const Tensor& slots, const Tensor& weights, const Tensor& y) {
  kernels_.combine(type_of(z), z.data, slots.as<std::int32_t>(), floats(weights), type_of(y), y.data, rows_of(y),
                   width_of(slots), width_of(y));
}

void CpuOps::combine_backward(const Tensor& dy, const Tensor& z, const Tensor& slots, const Tensor& weights,
                              const Tensor& dz, const Tensor& dweights) {
  kernels_.combine_backward(type_of(z), dy.as<float>(), z.data, slots.as<std::int32_t>(), floats(weights), dz.data,
                            floats(dweights), rows_of(dy), width_of(slots), width_of(dy));
}

void CpuOps::cross_entropy(const Tensor& logits, const Tensor& targets, double scale, const Tensor& losses,
                           const Tensor& dlogits) {
  check_indices(targets, INT32_MIN, width_of(logits), "cross_entropy");
  auto* scratch = partial_sums_.array<float>(omp_get_max_threads() * cross_entropy_scratch(width_of(logits)));
  kernels_.cross_entropy(logits.as<float>(), targets.as<std::int32_t>(), static_cast<float>(scale), losses.as<float>(),
                         dlogits ? type_of(dlogits) : Type::f32, dlogits.data, scratch, rows_of(logits),
                         width_of(logits));
}

void CpuOps::cross_entropy_part(const Tensor& logits, const Tensor& targets, std::int64_t first, const Tensor& part) {
  kernels_.cross_entropy_part(logits.as<float>(), targets.as<std::int32_t>(), first, part.as<float>(), rows_of(logits),
                              width_of(logits));
}

void CpuOps::cross_entropy_of_parts(const Tensor& parts, const Tensor& logits, const Tensor& targets,
                                    std::int64_t first, double scale, const Tensor& losses, const Tensor& dlogits) {
  kernels_.cross_entropy_of_parts(parts.as<float>(), parts.shape[0], logits.as<float>(), targets.as<std::int32_t>(),
                                  first, static_cast<float>(scale), losses.as<float>(),
                                  dlogits ? type_of(dlogits) : Type::f32, dlogits.data, rows_of(logits),
                                  width_of(logits));
}

double CpuOps::squared_norm(const Tensor& x) {
  std::array<double, kNormChunks> partial{};
  kernels_.squared_norm(type_of(x), x.data, partial.data(), x.elements());
  double sum = 0;
  for (const double value : partial) sum += value;
  return sum;
}

void CpuOps::adamw(const AdamwArguments& arguments, const Tensor& gradient, const Tensor& master, const Tensor& m,
                   const Tensor& v, const Tensor& weight) {
  const auto step = static_cast<double>(arguments.step);
  const AdamwConstants constants{
      .beta1 = static_cast<float>(arguments.beta1),
      .one_minus_beta1 = static_cast<float>(1.0 - arguments.beta1),
      .beta2 = static_cast<float>(arguments.beta2),
      .one_minus_beta2 = static_cast<float>(1.0 - arguments.beta2),
      .epsilon = static_cast<float>(arguments.epsilon),
      .step_size = static_cast<float>(arguments.learning_rate / (1.0 - std::pow(arguments.beta1, step))),
      .inv_sqrt_correction2 = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(arguments.beta2, step))),
      .decay = static_cast<float>(arguments.learning_rate * arguments.weight_decay),
      .gradient_scale = static_cast<float>(arguments.gradient_scale)};
  const std::int64_t n = master.elements();
  if (weight) {
    kernels_.adamw_halves(constants, gradient.as<float>(), weight.as<BF16>(), master.as<std::int16_t>(), m.as<float>(),
                          v.as<float>(), n);
  } else {
    kernels_.adamw(constants, gradient.as<float>(), master.as<float>(), m.as<float>(), v.as<float>(), n);
  }
}

}  // namespace cpu

std::unique_ptr<Ops> make_cpu_ops(const OpsOptions& options) { return std::make_unique<cpu::CpuOps>(options); }

}  // namespace dropcycle

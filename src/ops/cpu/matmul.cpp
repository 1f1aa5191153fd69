#include "matmul.hpp"

#include <omp.h>

#include <algorithm>
#include <array>
#include <oneapi/dnnl/dnnl.hpp>
#include <unordered_map>

#include "dropcycle/core/error.hpp"
#include "dropcycle/device/arena.hpp"

namespace dropcycle::cpu {
namespace {

using dnnl::memory;

// Primitives of other shapes are dropped where more than this many have come together (row counts that never repeat).
constexpr std::size_t kMaxPrimitives = 4096;

memory::data_type data_type(Type type) { return type == Type::bf16 ? memory::data_type::bf16 : memory::data_type::f32; }

memory::desc matrix(std::int64_t rows, std::int64_t columns, Type type, memory::format_tag tag) {
  return {{rows, columns}, data_type(type), tag};
}

// oneDNN 3 dropped the operation descriptors of 2.
dnnl::matmul::primitive_desc describe(const dnnl::engine& engine, const memory::desc& a, const memory::desc& b,
                                      const memory::desc& c, const dnnl::primitive_attr& attributes) {
#if DNNL_VERSION_MAJOR >= 3
  return {engine, a, b, c, attributes};
#else
  return {dnnl::matmul::desc(a, b, c), attributes, engine};
#endif
}

std::int64_t size(Type type) { return type == Type::bf16 ? 2 : 4; }

struct KeyHash {
  std::size_t operator()(const MatmulKey& key) const {
    std::uint64_t hash = (static_cast<std::uint64_t>(key.product) << 2) | (static_cast<std::uint64_t>(key.in) << 1) |
                         static_cast<std::uint64_t>(key.out);
    for (const std::int64_t size : {key.m, key.n, key.k, key.a_stride}) {
      hash = (hash ^ static_cast<std::uint64_t>(size)) * 0x9e3779b97f4a7c15ULL;
      hash ^= hash >> 29;
    }
    return static_cast<std::size_t>(hash);
  }
};

void limit_instructions(InstructionSet set) {
  constexpr std::array<dnnl::cpu_isa, 3> kLimits{dnnl::cpu_isa::sse41, dnnl::cpu_isa::avx2, dnnl::cpu_isa::avx512_core};
  // Later calls are refused by oneDNN once it has run; the limit is the same for the whole process anyway.
  if (set != InstructionSet::native)
    dnnl_set_max_cpu_isa(static_cast<dnnl_cpu_isa_t>(kLimits[static_cast<std::size_t>(set)]));
}

}  // namespace

struct Matmul::State {
  struct Kept {
    dnnl::matmul primitive;
    memory::desc a, b, c, scratch;
    std::unordered_map<int, memory> arguments;
  };

  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  std::unordered_map<MatmulKey, Kept, KeyHash> kept;
  std::unordered_map<MatmulKey, memory::desc, KeyHash> layouts;
  Buffer scratch;

  // The packed layout of a weight: what oneDNN picks for a product of 256 rows.
  const memory::desc& layout(Product product, Type type, std::int64_t n, std::int64_t k) {
    const MatmulKey key{product, type, type, 256, n, k};
    if (const auto found = layouts.find(key); found != layouts.end()) return found->second;
    const auto any = matrix(k, n, type, memory::format_tag::any);
    const auto description = describe(engine, matrix(key.m, k, type, memory::format_tag::ab), any,
                                      matrix(key.m, n, type, memory::format_tag::ab), {});
    return layouts.emplace(key, description.weights_desc()).first->second;
  }

  Kept create(const MatmulKey& key) {
    const bool gradient = key.product == Product::gradient;
    const memory::desc a = gradient ? memory::desc({key.m, key.k}, data_type(key.in),
                                                   memory::dims{1, key.a_stride == 0 ? key.m : key.a_stride})
                                    : matrix(key.m, key.k, key.in, memory::format_tag::ab);
    const auto b =
        gradient ? matrix(key.k, key.n, key.in, memory::format_tag::ab) : layout(key.product, key.in, key.n, key.k);
    const auto c = matrix(key.m, key.n, key.out, memory::format_tag::ab);
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    if (gradient) {
      dnnl::post_ops sum;
      sum.append_sum(1.0F);
      attributes.set_post_ops(sum);
    }
    const auto description = describe(engine, a, b, c, attributes);
    const auto scratch_description = description.scratchpad_desc();
    Kept made{dnnl::matmul(description), a, b, c, scratch_description, {}};
    made.arguments = arguments(made, nullptr, nullptr, nullptr, nullptr);
    return made;
  }

  std::unordered_map<int, memory> arguments(const Kept& of, const void* a, const void* b, void* c, void* temporary) {
    return {{DNNL_ARG_SRC, memory(of.a, engine, const_cast<void*>(a))},
            {DNNL_ARG_WEIGHTS, memory(of.b, engine, const_cast<void*>(b))},
            {DNNL_ARG_DST, memory(of.c, engine, c)},
            {DNNL_ARG_SCRATCHPAD, memory(of.scratch, engine, temporary)}};
  }

  // Memory for `count` primitives that run at a time.
  std::byte* scratch_for(std::int64_t bytes, std::int64_t count) {
    if (bytes * count > scratch.size_bytes()) scratch = Buffer(bytes * count);
    return scratch.data();
  }

  Kept& primitive(const MatmulKey& key) {
    if (const auto found = kept.find(key); found != kept.end()) return found->second;
    if (kept.size() >= kMaxPrimitives) kept.clear();
    return kept.emplace(key, create(key)).first->second;
  }
};

Matmul::Matmul(InstructionSet set, bool threads_inside) : threads_inside_(threads_inside) {
  limit_instructions(set);
  state_ = std::make_unique<State>();
}

Matmul::~Matmul() = default;

std::int64_t Matmul::packed_bytes(Product product, Type type, std::int64_t outputs, std::int64_t inputs) {
  const bool forward = product == Product::forward;
  const auto& layout = state_->layout(product, type, forward ? outputs : inputs, forward ? inputs : outputs);
  return (static_cast<std::int64_t>(layout.get_size()) + 63) / 64 * 64;
}

void Matmul::pack(Product product, Type type, std::int64_t outputs, std::int64_t inputs, const void* w, void* packed) {
  const bool forward = product == Product::forward;
  const std::int64_t n = forward ? outputs : inputs;
  const std::int64_t k = forward ? inputs : outputs;
  const auto plain = matrix(k, n, type, forward ? memory::format_tag::ba : memory::format_tag::ab);
  memory from(plain, state_->engine, const_cast<void*>(w));
  memory to(state_->layout(product, type, n, k), state_->engine, packed);
  dnnl::reorder(from, to).execute(state_->stream, from, to);
  state_->stream.wait();
}

void Matmul::run(const MatmulKey& key, const void* a, const void* b, void* c) {
  if (!threads_inside_) {
    run_blocks(key, a, b, c);
    return;
  }
  auto& kept = state_->primitive(key);
  auto& arguments = kept.arguments;
  arguments.at(DNNL_ARG_SRC).set_data_handle(const_cast<void*>(a));
  arguments.at(DNNL_ARG_WEIGHTS).set_data_handle(const_cast<void*>(b));
  arguments.at(DNNL_ARG_DST).set_data_handle(c);
  arguments.at(DNNL_ARG_SCRATCHPAD)
      .set_data_handle(state_->scratch_for(static_cast<std::int64_t>(kept.scratch.get_size()), 1));
  kept.primitive.execute(state_->stream, arguments);
  state_->stream.wait();
}

void Matmul::run_blocks(const MatmulKey& key, const void* a, const void* b, void* c) {
  constexpr std::int64_t kRows = 128;
  const bool gradient = key.product == Product::gradient;
  const std::int64_t blocks = (key.m + kRows - 1) / kRows;
  MatmulKey whole = key, rest = key;
  if (gradient) whole.a_stride = rest.a_stride = key.m;
  whole.m = std::min(kRows, key.m);
  rest.m = key.m - (blocks - 1) * kRows;
  state_->primitive(whole);
  const auto& last = state_->primitive(rest);
  const auto& first = state_->primitive(whole);  // references stay valid: the map has both
  const auto bytes =
      static_cast<std::int64_t>(std::max(first.scratch.get_size(), last.scratch.get_size()) + 63) / 64 * 64;
  std::byte* scratch = state_->scratch_for(bytes, omp_get_max_threads());
  const std::int64_t a_step = kRows * size(key.in) * (gradient ? 1 : key.k);
  const std::int64_t c_step = kRows * size(key.out) * key.n;
#pragma omp parallel
  {
    dnnl::stream stream(state_->engine);
    std::byte* own = scratch + bytes * omp_get_thread_num();
#pragma omp for schedule(static)
    for (std::int64_t block = 0; block < blocks; ++block) {
      const auto& kept = block + 1 < blocks ? first : last;
      kept.primitive.execute(stream, state_->arguments(kept, static_cast<const std::byte*>(a) + block * a_step, b,
                                                       static_cast<std::byte*>(c) + block * c_step, own));
      stream.wait();
    }
  }
}

}  // namespace dropcycle::cpu

#include "matmul.hpp"

#include <omp.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <oneapi/dnnl/dnnl.hpp>
#include <optional>
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
    for (const std::int64_t size : {key.m, key.n, key.k, 2 * key.a_stride + (key.one_thread ? 1 : 0)}) {
      hash = (hash ^ static_cast<std::uint64_t>(size)) * 0x9e3779b97f4a7c15ULL;
      hash ^= hash >> 29;
    }
    return static_cast<std::size_t>(hash);
  }
};

// Rows are cut into pieces of 32, 64, ..., 1024, 1088, ... (sixteen sizes an octave), largest first; what is left of 32
// is padded, to a power of two where the rows are those of c.
constexpr std::int64_t kSmallestPiece = 32;

struct Piece {
  std::int64_t size, rows;  // of the primitive, and how many of them there are
};

Piece first_piece(Product product, std::int64_t rows) {
  const auto left = static_cast<std::uint64_t>(rows);
  if (rows < kSmallestPiece) {
    return {product == Product::gradient ? kSmallestPiece : static_cast<std::int64_t>(std::bit_ceil(left)), rows};
  }
  const std::int64_t grain = std::max(kSmallestPiece, static_cast<std::int64_t>(std::bit_floor(left)) / 16);
  return {rows / grain * grain, rows / grain * grain};
}

// What a task's piece needs; a padded one is copied, without the columns of dy that are not the task's.
MatmulKey key_of(const MatmulTask& task, const Piece& piece) {
  MatmulKey key = task.key;
  const bool gradient = key.product == Product::gradient;
  (gradient ? key.k : key.m) = piece.size;
  if (gradient && piece.rows < piece.size) key.a_stride = key.m;
  key.one_thread = true;
  return key;
}

std::int64_t padded(std::size_t bytes) { return (static_cast<std::int64_t>(bytes) + 63) / 64 * 64; }

// The layout of a matrix [k, n] in our words; nothing where it isn't [n blocks][k blocks][rows][columns][group], or has
// rows or columns of padding.
std::optional<BlockedLayout> blocked_layout(const memory::desc& desc, Type type, std::int64_t k, std::int64_t n) {
  const std::int64_t group = type == Type::bf16 ? 2 : 1;
#if DNNL_VERSION_MAJOR >= 3
  const memory::dims sizes = desc.get_inner_blks(), axes = desc.get_inner_idxs(), strides = desc.get_strides();
#else
  const auto& blocking = desc.data.format_desc.blocking;
  const memory::dims sizes(blocking.inner_blks, blocking.inner_blks + blocking.inner_nblks),
      axes(blocking.inner_idxs, blocking.inner_idxs + blocking.inner_nblks),
      strides(blocking.strides, blocking.strides + 2);
#endif
  const bool grouped = group == 2 && axes == memory::dims{0, 1, 0} && sizes[2] == group;
  if (!grouped && !(group == 1 && axes == memory::dims{0, 1})) return {};
  constexpr std::int64_t kRows = BlockedLayout::kRows;
  if (sizes[0] != kRows || sizes[1] % kRows != 0 || k % (kRows * group) != 0 || n % sizes[1] != 0) return {};
  return BlockedLayout{sizes[1], group, strides[0], strides[1]};
}

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
    const int threads = omp_get_max_threads();
    if (key.one_thread) omp_set_num_threads(1);  // oneDNN plans for as many threads as it finds here
    const auto description = describe(engine, a, b, c, attributes);
    omp_set_num_threads(threads);
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

  void bound_memory() {
    if (kept.size() >= kMaxPrimitives) kept.clear();
  }

  Kept& primitive(const MatmulKey& key) {
    if (const auto found = kept.find(key); found != kept.end()) return found->second;
    return kept.emplace(key, create(key)).first->second;
  }

  // Creates the primitives of all tasks; bytes of memory that a thread needs for any of them.
  std::int64_t prepare(std::span<const MatmulTask> tasks) {
    std::int64_t bytes = 0;
    for (const MatmulTask& task : tasks) {
      for (std::int64_t rows = task.rows; rows > 0;) {
        const Piece piece = first_piece(task.key.product, rows);
        const Kept& made = primitive(key_of(task, piece));
        const bool gradient = task.key.product == Product::gradient;
        const std::int64_t copies = padded(made.a.get_size()) + padded((gradient ? made.b : made.c).get_size());
        bytes = std::max(bytes, padded(made.scratch.get_size()) + (piece.rows < piece.size ? copies : 0));
        rows -= piece.rows;
      }
    }
    return bytes;
  }

  void execute(const Kept& made, const void* a, const void* b, void* c, dnnl::stream& on, std::byte* memory) {
    made.primitive.execute(on, arguments(made, a, b, c, memory));
    on.wait();
  }

  // Rows of zeros stand behind those of a, and behind those of the other matrix that has the rows: b of gradient, else
  // c.
  void execute_padded(const MatmulTask& task, const Kept& made, const Piece& piece, dnnl::stream& on,
                      std::byte* memory) {
    const bool gradient = task.key.product == Product::gradient;
    const std::int64_t bytes = size(task.key.in);
    std::byte* const a = memory + padded(made.scratch.get_size());
    std::byte* const other = a + padded(made.a.get_size());
    const auto pad = [&piece](const std::byte* from, std::int64_t stride, std::int64_t width, std::byte* to) {
      for (std::int64_t row = 0; row < piece.rows; ++row) {
        std::memcpy(to + row * width, from + row * stride, static_cast<std::size_t>(width));
      }
      std::memset(to + piece.rows * width, 0, static_cast<std::size_t>((piece.size - piece.rows) * width));
    };
    if (gradient) {
      pad(task.a, task.key.a_stride * bytes, task.key.m * bytes, a);
      pad(task.b, task.key.n * bytes, task.key.n * bytes, other);
      return execute(made, a, other, task.c, on, memory);
    }
    pad(task.a, task.key.k * bytes, task.key.k * bytes, a);
    execute(made, a, task.b, other, on, memory);
    std::memcpy(task.c, other, static_cast<std::size_t>(piece.rows * task.key.n * size(task.key.out)));
  }

  void run_task(MatmulTask task, dnnl::stream& on, std::byte* memory) {
    const bool gradient = task.key.product == Product::gradient;
    const std::int64_t a_row = size(task.key.in) * (gradient ? task.key.a_stride : task.key.k);
    const std::int64_t b_row = gradient ? size(task.key.in) * task.key.n : 0;
    const std::int64_t c_row = gradient ? 0 : size(task.key.out) * task.key.n;
    while (task.rows > 0) {
      const Piece piece = first_piece(task.key.product, task.rows);
      const Kept& made = kept.find(key_of(task, piece))->second;
      if (piece.rows == piece.size) {
        execute(made, task.a, task.b, task.c, on, memory);
      } else {
        execute_padded(task, made, piece, on, memory);
      }
      task.a += piece.rows * a_row;
      task.b += piece.rows * b_row;
      task.c += piece.rows * c_row;
      task.rows -= piece.rows;
    }
  }
};

Matmul::Matmul(InstructionSet set, const Kernels& kernels) : kernels_(kernels) {
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
  const std::int64_t n = forward ? outputs : inputs, k = forward ? inputs : outputs;
  const memory::desc& to = state_->layout(product, type, n, k);
  if (const auto layout = blocked_layout(to, type, k, n)) {
    return kernels_.pack(*layout, /*transposed=*/forward, k, n, w, packed);
  }
  memory plain(matrix(k, n, type, forward ? memory::format_tag::ba : memory::format_tag::ab), state_->engine,
               const_cast<void*>(w));
  memory blocked(to, state_->engine, packed);
  dnnl::reorder(plain, blocked).execute(state_->stream, plain, blocked);
  state_->stream.wait();
}

void Matmul::run(const MatmulKey& key, const void* a, const void* b, void* c) {
  state_->bound_memory();
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

void Matmul::run(std::span<const MatmulTask> tasks) {
  state_->bound_memory();
  const std::int64_t bytes = state_->prepare(tasks);
  std::byte* const memory = state_->scratch_for(bytes, omp_get_max_threads());
// Always inside a parallel region, even for one task: there oneDNN keeps to the calling thread.
#pragma omp parallel
  {
    dnnl::stream stream(state_->engine);
    std::byte* const own = memory + bytes * omp_get_thread_num();
#pragma omp for schedule(dynamic, 1)
    for (std::size_t i = 0; i < tasks.size(); ++i) state_->run_task(tasks[i], stream, own);
  }
}

}  // namespace dropcycle::cpu

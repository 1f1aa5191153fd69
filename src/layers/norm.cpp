#include "dropcycle/layers/context.hpp"

namespace dropcycle {

Recompute parse_recompute(std::string_view text) {
  return text == "full" ? Recompute::full : text == "selective" ? Recompute::selective : Recompute::none;
}

Tensor upload(Arena& arena, const std::vector<std::int32_t>& values) {
  const Tensor tensor = arena.tensor(DType::i32, {std::ssize(values)});
  arena.device().upload(tensor.data, values.data(), tensor.bytes());
  return tensor;
}

Microbatch upload(Arena& arena, const Microbatch& batch) {
  if (arena.device().is_host()) return batch;
  Microbatch there = batch;
  for (Tensor* values : {&there.tokens, &there.targets, &there.positions, &there.first_key, &there.places}) {
    if (*values) *values = arena.upload(*values);
  }
  there.host = &batch.on_host();
  return there;
}

Tensor norm_forward(Context& context, const Stream& in, const Tensor& w, double epsilon, NormSaved& saved) {
  const Shape shape = in.x.shape;
  saved.sum = in.delta ? context.saved.tensor(context.acc(), shape) : in.x;
  saved.inv_rms = context.saved.tensor(context.acc(), {shape[0]});
  const bool keep = context.recompute != Recompute::selective;
  const Tensor normed = (keep ? context.saved : context.scratch).tensor(context.compute, shape);
  context.ops.add_rms_norm(in.x, in.delta, w, epsilon, in.delta ? saved.sum : Tensor(), normed, saved.inv_rms);
  saved.normed = keep ? normed : Tensor();
  return normed;
}

Tensor in_compute(Context& context, const Tensor& x) {
  if (x.dtype == context.compute) return x;
  const Tensor rounded = context.scratch.tensor(context.compute, x.shape);
  context.ops.convert(x, rounded);
  return rounded;
}

Tensor norm_output(Context& context, const Tensor& w, double epsilon, const NormSaved& saved) {
  if (saved.normed) return saved.normed;
  const Tensor normed = context.scratch.tensor(context.compute, saved.sum.shape);
  context.ops.add_rms_norm(saved.sum, {}, w, epsilon, {}, normed, saved.inv_rms);
  return normed;
}

}  // namespace dropcycle

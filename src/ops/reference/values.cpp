#include "values.hpp"

namespace dropcycle::reference {

std::vector<double> read(const Tensor& x) {
  if (!x) return {};
  std::vector<double> values(static_cast<std::size_t>(x.elements()));
  const auto copy = [&](const auto* from, auto convert) {
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = convert(from[i]);
  };
  switch (x.dtype) {
    case DType::f64:
      copy(x.as<double>(), [](double v) { return v; });
      break;
    case DType::f32:
      copy(x.as<float>(), [](float v) { return static_cast<double>(v); });
      break;
    case DType::bf16:
      copy(x.as<BF16>(), [](BF16 v) { return static_cast<double>(static_cast<float>(v)); });
      break;
    case DType::i32:
      copy(x.as<std::int32_t>(), [](std::int32_t v) { return static_cast<double>(v); });
      break;
    case DType::f16:
    case DType::i16:
      fail(Status::internal, "{} isn't computed with", name(x.dtype));
  }
  return values;
}

std::vector<std::int32_t> read_indices(const Tensor& x) {
  if (!x) return {};
  const auto* from = x.as<std::int32_t>();
  return {from, from + x.elements()};
}

void write(const std::vector<double>& values, const Tensor& out) {
  require(static_cast<std::int64_t>(values.size()) == out.elements(), "{} values for tensor {}", values.size(),
          to_string(out.shape));
  const auto copy = [&](auto* to, auto convert) {
    for (std::size_t i = 0; i < values.size(); ++i) to[i] = convert(values[i]);
  };
  switch (out.dtype) {
    case DType::f64:
      return copy(out.as<double>(), [](double v) { return v; });
    case DType::f32:
      return copy(out.as<float>(), [](double v) { return static_cast<float>(v); });
    case DType::bf16:
      return copy(out.as<BF16>(), [](double v) { return BF16(static_cast<float>(v)); });
    case DType::i32:
      return copy(out.as<std::int32_t>(), [](double v) { return static_cast<std::int32_t>(v); });
    case DType::f16:
    case DType::i16:
      fail(Status::internal, "{} isn't computed with", name(out.dtype));
  }
}

}  // namespace dropcycle::reference

#include "conversion.hpp"

#include <array>
#include <future>

#include "dropcycle/model/model.hpp"

namespace dropcycle {

std::vector<ParameterSpec> all_parameters(const ModelConfig& model) { return Model::declare(model, Groups::single()); }

DType stored_dtype(const ParameterSpec& spec, DType dtype) {
  return spec.full_precision() && dtype == DType::bf16 ? DType::f32 : dtype;
}

void convert_model(Receipt& receipt, Checkpoint* parent, const std::vector<ParameterSpec>& specs,
                   const std::function<void(std::size_t, const Tensor&)>& take) {
  const auto read_parent = [parent](const ShardedTensor& out) { parent->read("weight", out); };
  std::optional<Upcycler> upcycler;
  if (receipt.init.method != "scratch") upcycler.emplace(receipt.moe, receipt.dense, receipt.init, read_parent);
  std::array<std::vector<std::byte>, 2> memory;  // one is filled while the other is taken
  std::future<void> taken;
  std::size_t turn = 0;
  for (const std::size_t place : Upcycler::order(specs)) {
    const ParameterSpec& spec = specs[place];
    const DType dtype = stored_dtype(spec, receipt.dtype);
    std::vector<std::byte>& bytes = memory[turn++ % 2];
    bytes.resize(static_cast<std::size_t>(spec.shape.elements() * size_bytes(dtype)));
    const Tensor tensor(bytes.data(), dtype, spec.shape);
    if (upcycler) {
      upcycler->fill(spec, whole(spec.name, tensor));
    } else {
      initialise_fresh(spec, receipt.init, receipt.moe.init_std, whole(spec.name, tensor));
    }
    if (taken.valid()) taken.get();
    taken = std::async(std::launch::async, [&take, place, tensor] { take(place, tensor); });
  }
  if (taken.valid()) taken.get();
  receipt.blocks = upcycler ? upcycler->blocks() : std::vector<DroppedBlock>{};
}

}  // namespace dropcycle

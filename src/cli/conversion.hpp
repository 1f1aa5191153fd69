// A dense checkpoint turned into an MoE's weights, two parameters in memory at a time: `upcycle` writes them, `verify`
// compares them, while the next one is made.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "dropcycle/checkpoint/checkpoint.hpp"
#include "dropcycle/layers/parameter.hpp"
#include "dropcycle/upcycle/receipt.hpp"

namespace dropcycle {

// Every parameter of a model, and the type that it has in a model-only checkpoint of type `dtype`: norms and router
// stay in full precision.
std::vector<ParameterSpec> all_parameters(const ModelConfig& model);
DType stored_dtype(const ParameterSpec& spec, DType dtype);

// Makes the MoE that receipt.dense, .moe, .init and .dtype describe and hands each parameter to `take`(place in
// `specs`, data), on another thread and one after another, in an order that reads the parent once. Sets receipt.blocks.
// `parent` may be null for scratch.
void convert_model(Receipt& receipt, Checkpoint* parent, const std::vector<ParameterSpec>& specs,
                   const std::function<void(std::size_t, const Tensor&)>& take);

}  // namespace dropcycle

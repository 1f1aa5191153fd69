// What an operation graph computes, on the CPU: every tensor in memory, one operation after the other, results rounded
// to their tensor's type.
#pragma once

#include <cstdint>
#include <map>

#include "../../src/ops/cuda/attention_graph.hpp"

namespace dropcycle::cuda {

// Memory of the tensors that aren't virtual, by id; of numbers by value a float. Throws Error{internal} for a graph
// that isn't well formed, reads a virtual tensor before it is written, or lacks memory.
void interpret(const Graph& graph, const std::map<std::int64_t, void*>& memory);

}  // namespace dropcycle::cuda

// Parameters: what a layer declares of each, and one struct template for weights, gradients and checkpoints.
#pragma once

#include <string>
#include <vector>

#include "dropcycle/core/tensor.hpp"

namespace dropcycle {

// How fresh values are drawn: normal(0, init_std), all ones, or the router's own distribution.
enum class Initial { normal, ones, router };
// For weight-decay exclusions.
enum class Role { matrix, norm, embedding, router };
// Which replicas sum its gradient: dense over dp×cp, expert over edp.
enum class GradientGroup { dense, expert };

struct ParameterSpec {
  std::string name;  // global name
  Shape shape;       // global shape; matrices are [out, in]
  Initial initial = Initial::normal;
  Role role = Role::matrix;
  GradientGroup group = GradientGroup::dense;
  // Parameters of one block lie one after another without padding, so that a layer may view them as one matrix
  // (query, key, value; gate, up). Equal block names, adjacent declaration.
  std::string block;
  // Kept and used in acc precision (norms, router) rather than compute.
  bool full_precision() const { return role == Role::norm || role == Role::router; }
};

}  // namespace dropcycle

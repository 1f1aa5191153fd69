// Collectives of a test's values on the device that it runs on: the host, or with DROPCYCLE_TEST_ON_GPU a GPU.
#pragma once

#include <cstdlib>
#include <vector>

#include "dropcycle/device/arena.hpp"

namespace dropcycle::test {

inline Device& device() {
#ifdef DROPCYCLE_TEST_ON_GPU
  const char* const rank = std::getenv("OMPI_COMM_WORLD_LOCAL_RANK");
  return cuda_device(rank == nullptr ? 0 : std::atoi(rank));
#else
  return host_device();
#endif
}

// A vector's values in the memory of the device while it lives, and back in the vector when it dies.
template <class T>
class Lent {
 public:
  Lent(std::vector<T>& values, const Shape& shape)
      : host_(values.data(), Shape{static_cast<std::int64_t>(values.size())}), tensor_(values.data(), shape) {
    if (device().is_host() || values.empty()) return;
    memory_ = Buffer(host_.bytes(), device());
    device().upload(memory_.data(), host_.data, host_.bytes());
    tensor_.data = memory_.data();
  }
  explicit Lent(std::vector<T>& values) : Lent(values, Shape{static_cast<std::int64_t>(values.size())}) {}
  Lent(const Lent&) = delete;
  Lent& operator=(const Lent&) = delete;
  ~Lent() {
    if (tensor_.data != host_.data) device().download(host_.data, memory_.data(), host_.bytes());
  }
  operator const Tensor&() const { return tensor_; }

 private:
  Tensor host_, tensor_;
  Buffer memory_;
};

}  // namespace dropcycle::test

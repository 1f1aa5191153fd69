#include "dropcycle/core/error.hpp"
#include "dropcycle/device/device.hpp"

namespace dropcycle {

Device& cuda_device(int) {
  fail(Status::usage,
       "no CUDA device: this binary was built without CUDA: build it with `cmake --preset cuda && cmake --build "
       "--preset cuda`, or use device.backend = \"cpu\"");
}

}  // namespace dropcycle

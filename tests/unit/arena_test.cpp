#include <doctest/doctest.h>

#include "dropcycle/device/arena.hpp"

using namespace dropcycle;

TEST_CASE("a repeated step takes the same memory and asks the system for nothing") {
  Arena arena;
  const auto step = [&] {
    arena.tensor(DType::f32, {1000, 1000});
    {
      const ArenaScope scope(arena);
      arena.tensor(DType::f32, {2000, 1000});
    }
    return arena.tensor(DType::bf16, {3, 5, 7}).data;
  };
  step();
  arena.reset();
  void* second = step();
  const std::int64_t allocations = arena.system_allocations();
  for (int i = 0; i < 3; ++i) {
    arena.reset();
    CHECK(step() == second);
  }
  CHECK(arena.system_allocations() == allocations);
  CHECK(arena.peak_bytes() >= 12'000'000);
  CHECK(arena.peak_bytes() < 12'001'000);
}

TEST_CASE("a scope gives back what was taken inside it, across blocks") {
  Arena arena;
  void* inside = nullptr;
  {
    const ArenaScope scope(arena);
    inside = arena.allocate(10 << 20);
    arena.allocate(10 << 20);
  }
  CHECK(arena.used_bytes() == 0);
  CHECK(arena.allocate(100) == inside);
}

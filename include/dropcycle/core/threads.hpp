// Splits independent work over the processor's threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

namespace dropcycle {

// work(first, last) for consecutive parts of [0, count); a part has at least `grain` items. Nothing may depend on where
// the cuts are.
template <class Work>
void in_parallel(std::int64_t count, std::int64_t grain, const Work& work) {
  const auto processors = static_cast<std::int64_t>(std::max(1U, std::thread::hardware_concurrency()));
  const std::int64_t parts = std::clamp<std::int64_t>(count / std::max<std::int64_t>(grain, 1), 1, processors);
  std::vector<std::thread> threads;
  for (std::int64_t part = 1; part < parts; ++part) {
    threads.emplace_back([&, part] { work(count * part / parts, count * (part + 1) / parts); });
  }
  work(std::int64_t{0}, count / parts);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace dropcycle

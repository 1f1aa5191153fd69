// The ids of short parts of text, remembered: most words of a text come again.
#pragma once

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

namespace dropcycle {

class PartCache {
 public:
  // Without slots it remembers nothing.
  explicit PartCache(bool remember) : slots_(remember ? kSlots : 0) {}

  // Appends the ids of `part`, which encode(part, ids) appends where they aren't remembered.
  template <class Encode>
  void append(std::string_view part, std::vector<std::int32_t>& ids, Encode&& encode) {
    if (slots_.empty() || part.size() > Slot::kKeyBytes) {
      encode(part, ids);
      return;
    }
    Slot& slot = slots_[XXH3_64bits(part.data(), part.size()) % kSlots];
    if (slot.holds(part)) {
      ids.insert(ids.end(), slot.id.begin(), slot.id.begin() + slot.ids);
      return;
    }
    const std::size_t before = ids.size();
    encode(part, ids);
    if (ids.size() - before <= Slot::kIds) slot.set(part, std::span(ids).subspan(before));
  }

 private:
  // A part and its ids in one cache line.
  struct alignas(64) Slot {
    static constexpr std::size_t kKeyBytes = 38, kIds = 6;
    std::uint8_t key_bytes = 0, ids = 0;
    std::array<char, kKeyBytes> key;
    std::array<std::int32_t, kIds> id;

    bool holds(std::string_view part) const {
      return key_bytes == part.size() && std::memcmp(key.data(), part.data(), part.size()) == 0;
    }
    void set(std::string_view part, std::span<const std::int32_t> values) {
      key_bytes = static_cast<std::uint8_t>(part.size());
      ids = static_cast<std::uint8_t>(values.size());
      std::copy(part.begin(), part.end(), key.begin());
      std::copy(values.begin(), values.end(), id.begin());
    }
  };
  static_assert(sizeof(Slot) == 64);
  static constexpr std::size_t kSlots = std::size_t{1} << 16U;  // 4 MiB

  std::vector<Slot> slots_;
};

}  // namespace dropcycle

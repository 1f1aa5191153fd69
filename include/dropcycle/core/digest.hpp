// Content digests (XXH3, 128 bits) as 32 hexadecimal digits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace dropcycle {

std::string digest(const void* data, std::size_t size_bytes);
inline std::string digest(std::string_view text) { return digest(text.data(), text.size()); }
std::uint64_t hash64(std::string_view text);

// The digest of a stream of pieces; equal to digest() of their concatenation.
class Digester {
 public:
  Digester();
  ~Digester();
  Digester(Digester&&) noexcept;
  Digester& operator=(Digester&&) noexcept;
  void update(const void* data, std::size_t size_bytes);
  std::string finish() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace dropcycle

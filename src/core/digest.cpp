#include "dropcycle/core/digest.hpp"

#include <fmt/format.h>
#define XXH_STATIC_LINKING_ONLY  // the complete state type
#include <xxhash.h>

namespace dropcycle {
namespace {

std::string hexadecimal(XXH128_hash_t hash) { return fmt::format("{:016x}{:016x}", hash.high64, hash.low64); }

}  // namespace

std::string digest(const void* data, std::size_t size_bytes) { return hexadecimal(XXH3_128bits(data, size_bytes)); }

std::uint64_t hash64(std::string_view text) { return XXH3_64bits(text.data(), text.size()); }

struct Digester::State {
  XXH3_state_t hash;
};

Digester::Digester() : state_(std::make_unique<State>()) { XXH3_128bits_reset(&state_->hash); }
Digester::~Digester() = default;
Digester::Digester(Digester&&) noexcept = default;
Digester& Digester::operator=(Digester&&) noexcept = default;
void Digester::update(const void* data, std::size_t size_bytes) {
  XXH3_128bits_update(&state_->hash, data, size_bytes);
}
std::string Digester::finish() const { return hexadecimal(XXH3_128bits_digest(&state_->hash)); }

}  // namespace dropcycle

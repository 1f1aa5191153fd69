// The names and digests that the shard's reader and writer share, and HDF5 handles that close themselves.
#pragma once

#include <hdf5.h>

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dropcycle/data/shard.hpp"

namespace dropcycle::shard_format {

inline constexpr const char* kFormat = "dropcycle.tokens";
inline constexpr std::int64_t kVersion = 1;
inline constexpr std::uint64_t kBlockBytes = 1ULL << 20U;
inline constexpr const char* kTokens = "tokens";
inline constexpr const char* kOffsets = "document_offsets";
inline constexpr const char* kTokenDigests = "token_digests";
inline constexpr const char* kOffsetDigests = "offset_digests";

// XXH3-128 of one block.
struct BlockDigest {
  std::uint64_t high = 0, low = 0;
  bool operator==(const BlockDigest&) const = default;
};
BlockDigest digest_block(const void* data, std::size_t size);

inline std::uint64_t block_count(std::uint64_t bytes) { return (bytes + kBlockBytes - 1) / kBlockBytes; }
inline std::uint64_t bytes_per_token(std::uint64_t vocabulary) { return vocabulary <= 65536 ? 2 : 4; }

// The digest of attributes and both tables.
std::string content_digest(const ShardInfo& info, std::span<const BlockDigest> tokens,
                           std::span<const BlockDigest> offsets);

// An HDF5 handle; negative is empty.
class Handle {
 public:
  using Close = herr_t (*)(hid_t);
  Handle() = default;
  Handle(hid_t id, Close close) : id_(id), close_(close) {}
  Handle(Handle&& other) noexcept : id_(std::exchange(other.id_, -1)), close_(other.close_) {}
  Handle& operator=(Handle&& other) noexcept {
    std::swap(id_, other.id_);
    std::swap(close_, other.close_);
    return *this;
  }
  ~Handle() { reset(); }
  explicit operator bool() const { return id_ >= 0; }
  hid_t get() const { return id_; }
  // Closes now; false if HDF5 failed (a full disk shows here).
  bool reset() { return id_ < 0 || close_(std::exchange(id_, -1)) >= 0; }

 private:
  hid_t id_ = -1;
  Close close_ = nullptr;
};

// HDF5 prints a stack of its errors on standard error; we throw ours instead. For the life of the object.
class QuietHdf5 {
 public:
  QuietHdf5() {
    H5Eget_auto2(H5E_DEFAULT, &function_, &data_);
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  }
  ~QuietHdf5() { H5Eset_auto2(H5E_DEFAULT, function_, data_); }
  QuietHdf5(const QuietHdf5&) = delete;
  QuietHdf5& operator=(const QuietHdf5&) = delete;

 private:
  H5E_auto2_t function_ = nullptr;
  void* data_ = nullptr;
};

}  // namespace dropcycle::shard_format

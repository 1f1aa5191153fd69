// Sealed JSON: an object whose last member is the digest of all text before it, so that one changed byte anywhere in
// the file shows.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace dropcycle {

// `object` is the text of a JSON object with at least one member; the answer is the same object with the member
// "digest" at its end.
std::string seal(std::string_view object);
// The digest of a sealed text. Throws Error{input} naming `path` when the text isn't what was sealed.
std::string check_seal(std::string_view text, const std::filesystem::path& path);

}  // namespace dropcycle

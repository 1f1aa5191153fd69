// "Did you mean ...?" for mistyped keys, verbs and options.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace dropcycle {

// Damerau-Levenshtein distance (optimal string alignment): the least number of insertions, deletions, substitutions
// and swaps of neighbours that turn `from` into `to`, no part of the text being edited twice.
int edit_distance(std::string_view from, std::string_view to);

// The candidates nearest to `word` (all that are equally near, in their order), or none if even those are further than
// a third of the word's length (at least 1) away.
std::vector<std::string> nearest(std::string_view word, const std::vector<std::string>& candidates);

// ": did you mean 'a'?" or ": did you mean 'a' or 'b'?"; empty if nothing is near.
std::string did_you_mean(std::string_view word, const std::vector<std::string>& candidates);

}  // namespace dropcycle

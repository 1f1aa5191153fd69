// gnuplot as a program that is called, without a shell.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace dropcycle {

// A text as gnuplot's enhanced mode shows it unchanged: in single quotes, which double inside, with \ before markup.
std::string gnuplot_text(std::string_view text);

// Runs `gnuplot script` inside `folder`. Throws Error{input} if gnuplot isn't installed or fails, with its first line.
void run_gnuplot(const std::filesystem::path& folder, const std::string& script);

}  // namespace dropcycle

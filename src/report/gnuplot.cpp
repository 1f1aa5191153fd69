#include "gnuplot.hpp"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "dropcycle/core/error.hpp"
#include "dropcycle/core/file.hpp"

namespace dropcycle {
namespace {

constexpr int kNotInstalled = 127;

// In the child: standard error into the log, then gnuplot.
[[noreturn]] void execute(const char* folder, const char* script, const char* log) {
  const int descriptor = ::open(log, O_WRONLY | O_CREAT | O_TRUNC, 0644);
  if (descriptor < 0 || ::dup2(descriptor, STDERR_FILENO) < 0 || ::chdir(folder) != 0) ::_exit(1);
  ::execlp("gnuplot", "gnuplot", script, static_cast<char*>(nullptr));
  ::_exit(errno == ENOENT ? kNotInstalled : 1);
}

// The first line that says something: gnuplot shows the faulty command and a caret first.
std::string reason(const std::filesystem::path& log) {
  const std::string text = read_file(log);
  const std::size_t begin = text.find("line ");
  const std::size_t from = begin == std::string::npos ? 0 : begin;
  return text.substr(from, text.find('\n', from) - from);
}

}  // namespace

std::string gnuplot_text(std::string_view text) {
  std::string result = "'";
  for (const char character : text) {
    if (std::string_view("_^{}@&~\\").find(character) != std::string_view::npos) result += '\\';
    if (character == '\'') result += '\'';
    result += character;
  }
  return result + "'";
}

void run_gnuplot(const std::filesystem::path& folder, const std::string& script) {
  const std::filesystem::path log = folder / (script + ".log");
  const std::string folder_text = folder.string(), log_text = log.string();
  const pid_t child = ::fork();
  if (child < 0) fail(Status::internal, "fork for gnuplot failed: {}", std::strerror(errno));
  if (child == 0) execute(folder_text.c_str(), script.c_str(), log_text.c_str());
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  const int code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  if (code == kNotInstalled) {
    fail(Status::input,
         "gnuplot isn't installed, so no figure was drawn: install gnuplot-nox (tools/setup does), or "
         "take the data in {}",
         folder_text);
  }
  if (code != 0) fail(Status::input, "{}: gnuplot failed: {}", (folder / script).string(), reason(log));
  file_system().remove_all(log);
}

}  // namespace dropcycle

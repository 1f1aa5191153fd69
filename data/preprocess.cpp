#include "dropcycle/data/preprocess.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

#include "dropcycle/core/error.hpp"
#include "dropcycle/core/file.hpp"
#include "dropcycle/core/progress.hpp"
#include "dropcycle/data/tokenizer.hpp"
#include "shard_set.hpp"
#include "text_extractor.hpp"
#include "text_reader.hpp"

namespace dropcycle {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kChunkBytes = 1U << 19U;  // of text handed to a worker at once

struct BadLine {
  LineFault fault;
  std::uint64_t line, byte;
  std::string reason, excerpt;
};

// Some lines of one file: text when the reader made it, tokens when a worker is done with it.
struct Chunk {
  std::size_t file = 0;
  bool json = false;
  std::string text;  // the lines one after another, and padding
  std::vector<Line> lines;
  std::vector<std::size_t> ends;  // of each line in `text`
  std::uint64_t input_bytes = 0;  // of the files, compressed, up to here

  bool done = false;
  std::vector<std::int32_t> tokens;
  std::vector<std::size_t> documents;  // tokens of each
  std::uint64_t text_bytes = 0;
  std::vector<BadLine> bad;
};

std::string excerpt_of(std::string_view line) { return std::string(line.substr(0, 200)); }

// Reader thread -> workers -> the caller, which takes the chunks in the order that they were read in.
class Pipeline {
 public:
  Pipeline(const PreprocessOptions& options, const std::vector<fs::path>& files, const Tokenizer& tokenizer,
           int workers)
      : options_(options), files_(files), tokenizer_(tokenizer), limit_(static_cast<std::size_t>(workers) * 2 + 2) {
    threads_.emplace_back([this] { guarded([this] { read_files(); }); });
    for (int w = 0; w < workers; ++w) threads_.emplace_back([this] { guarded([this] { work(); }); });
  }
  ~Pipeline() {
    stop();
    for (auto& thread : threads_) thread.join();
  }
  Pipeline(const Pipeline&) = delete;
  Pipeline& operator=(const Pipeline&) = delete;

  // The next chunk, null after the last. Throws what a thread threw.
  std::shared_ptr<Chunk> next() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return error_ || (ordered_.empty() ? all_read_ : ordered_.front()->done); });
    if (error_) std::rethrow_exception(error_);
    if (ordered_.empty()) return nullptr;
    auto chunk = std::move(ordered_.front());
    ordered_.pop_front();
    changed_.notify_all();
    return chunk;
  }

 private:
  template <class Work>
  void guarded(Work&& work) {
    try {
      work();
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!error_) error_ = std::current_exception();
      stopped_ = true;
      changed_.notify_all();
    }
  }
  void stop() {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    changed_.notify_all();
  }

  // False if the work has been stopped.
  bool push(std::shared_ptr<Chunk> chunk) {
    chunk->text.append(TextExtractor::kPadding, '\0');
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return stopped_ || ordered_.size() < limit_; });
    if (stopped_) return false;
    todo_.push_back(chunk);
    ordered_.push_back(std::move(chunk));
    changed_.notify_all();
    return true;
  }

  void read_files() {
    std::uint64_t bytes_before = 0;
    for (std::size_t file = 0; file < files_.size(); ++file) {
      if (!read_file_chunks(file, bytes_before)) return;
      bytes_before += fs::file_size(files_[file]);
    }
    const std::lock_guard lock(mutex_);
    all_read_ = true;
    changed_.notify_all();
  }

  bool read_file_chunks(std::size_t file, std::uint64_t bytes_before) {
    const bool json = is_json_lines(files_[file]);
    LineReader reader(files_[file], options_.max_line_bytes, !json && options_.split == TextSplit::files);
    for (bool more = true; more;) {
      auto chunk = std::make_shared<Chunk>();
      chunk->file = file;
      chunk->json = json;
      Line line;
      while (chunk->text.size() < kChunkBytes && (more = reader.next(chunk->text, line))) {
        chunk->lines.push_back(line);
        chunk->ends.push_back(chunk->text.size());
      }
      chunk->input_bytes = bytes_before + reader.file_bytes();
      if (!push(std::move(chunk))) return false;
    }
    return true;
  }

  void work() {
    Encoder encoder(tokenizer_);
    TextExtractor extractor(options_.text_key);
    for (;;) {
      std::shared_ptr<Chunk> chunk;
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return stopped_ || !todo_.empty() || all_read_; });
        if (stopped_ || todo_.empty()) return;
        chunk = std::move(todo_.front());
        todo_.pop_front();
      }
      tokenize(*chunk, encoder, extractor);
      const std::lock_guard lock(mutex_);
      chunk->done = true;
      changed_.notify_all();
    }
  }

  void tokenize(Chunk& chunk, Encoder& encoder, TextExtractor& extractor) const {
    std::size_t begin = 0;
    for (std::size_t i = 0; i < chunk.lines.size(); ++i) {
      const Line& line = chunk.lines[i];
      std::string_view text(chunk.text.data() + begin, chunk.ends[i] - begin);
      begin = chunk.ends[i];
      if (line.too_long) {
        chunk.bad.push_back({LineFault::too_long, line.number, line.byte,
                             fmt::format("{} bytes, more than --max-line-bytes {}", line.size, options_.max_line_bytes),
                             excerpt_of(text)});
        continue;
      }
      if (chunk.json || options_.split == TextSplit::lines) {
        if (text.ends_with('\r')) text.remove_suffix(1);
        if (text.find_first_not_of(chunk.json ? " \t" : "") == std::string_view::npos) continue;
      }
      const ExtractedText found = chunk.json ? extractor.from_json(text) : TextExtractor::from_text(text);
      if (found.fault != LineFault::none) {
        chunk.bad.push_back({found.fault, line.number, line.byte + found.byte, found.reason, excerpt_of(text)});
        continue;
      }
      add_document(chunk, encoder, found.text);
    }
    std::string().swap(chunk.text);
  }

  void add_document(Chunk& chunk, Encoder& encoder, std::string_view text) const {
    const std::size_t before = chunk.tokens.size();
    if (!text.empty()) {
      if (options_.add_bos) chunk.tokens.push_back(tokenizer_.bos_id());
      encoder.encode(text, chunk.tokens);
      if (options_.append_eos) chunk.tokens.push_back(tokenizer_.eos_id());
    }
    chunk.documents.push_back(chunk.tokens.size() - before);
    chunk.text_bytes += text.size();
  }

  const PreprocessOptions& options_;
  const std::vector<fs::path>& files_;
  const Tokenizer& tokenizer_;
  const std::size_t limit_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Chunk>> todo_, ordered_;  // to be tokenized; in flight, in order
  std::exception_ptr error_;
  bool all_read_ = false, stopped_ = false;
  std::vector<std::thread> threads_;
};

class Quarantine {
 public:
  explicit Quarantine(std::string path) : path_(std::move(path)) {}
  void add(const fs::path& file, const BadLine& bad) {
    if (!out_) out_.emplace(path_);
    const nlohmann::ordered_json entry = {{"file", file.string()},   {"line", bad.line},     {"byte", bad.byte},
                                          {"kind", name(bad.fault)}, {"reason", bad.reason}, {"excerpt", bad.excerpt}};
    if (first_.empty()) first_ = fmt::format("{}:{}:{}: {}", file.string(), bad.line, bad.byte, bad.reason);
    out_->append(entry.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
  }
  // The file is there exactly if there were bad lines.
  void commit() {
    if (out_) {
      out_->commit();
    } else if (fs::exists(path_)) {
      file_system().remove_all(path_);
    }
  }
  const std::string& path() const { return path_; }
  const std::string& first() const { return first_; }

 private:
  std::string path_, first_;
  std::optional<AtomicFile> out_;
};

void count(PreprocessReport& report, LineFault fault) {
  switch (fault) {
    case LineFault::none:
      break;
    case LineFault::broken_json:
      ++report.broken_json;
      break;
    case LineFault::no_text:
      ++report.no_text;
      break;
    case LineFault::not_a_string:
      ++report.not_a_string;
      break;
    case LineFault::invalid_utf8:
      ++report.invalid_utf8;
      break;
    case LineFault::too_long:
      ++report.too_long;
      break;
  }
}

void show_progress(Progress& progress, const PreprocessReport& report, std::uint64_t bytes, std::uint64_t total) {
  if (!progress.due()) return;
  const double seconds = progress.seconds();
  const double share = total > 0 ? static_cast<double>(bytes) / static_cast<double>(total) : 1;
  progress.show(fmt::format(
      "preprocess {:5.1f}%  {:.1f} MB/s  {:.2f} Mtoken/s  {} documents  {} bad lines  {:.0f} s left", 100 * share,
      static_cast<double>(report.text_bytes) / 1e6 / seconds, static_cast<double>(report.tokens) / 1e6 / seconds,
      report.documents, report.bad(), share > 0 ? seconds / share - seconds : 0.0));
}

void check(const PreprocessOptions& options, const Tokenizer& tokenizer) {
  if (options.append_eos && tokenizer.eos_id() < 0) {
    fail(Status::usage, "{}: has no end id, but --append-eos is on: say --no-append-eos or take another tokenizer",
         tokenizer.path().string());
  }
  if (options.add_bos && tokenizer.bos_id() < 0) {
    fail(Status::usage, "{}: has no begin id for --add-bos: leave it out or take another tokenizer",
         tokenizer.path().string());
  }
  if (options.max_line_bytes == 0 || options.max_line_bytes > (1ULL << 30U)) {
    fail(Status::usage, "--max-line-bytes {}: expected 1 to 1073741824", options.max_line_bytes);
  }
}

void take(const Chunk& chunk, ShardSet& shards, PreprocessReport& report) {
  std::span<const std::int32_t> rest(chunk.tokens);
  for (const std::size_t size : chunk.documents) {
    shards.add_tokens(rest.first(size));
    shards.end_document();
    rest = rest.subspan(size);
  }
  report.documents += chunk.documents.size();
  report.tokens += chunk.tokens.size();
  report.text_bytes += chunk.text_bytes;
}

}  // namespace

PreprocessReport preprocess(const PreprocessOptions& given) {
  PreprocessOptions options = given;
  options.source = source_name(options.output, options.source);
  const Tokenizer tokenizer(options.tokenizer);
  check(options, tokenizer);
  const std::vector<fs::path> files = expand_globs(options.inputs);
  if (files.empty()) fail(Status::usage, "no input: name JSONL or text files");
  std::uint64_t total_bytes = 0;
  for (const fs::path& file : files) {
    if (!fs::is_regular_file(file)) fail(Status::input, "{}: not found or not a file: check the inputs", file.string());
    total_bytes += fs::file_size(file);
  }
  ShardSet shards({options.output, options.source, tokenizer.digest(),
                   static_cast<std::uint64_t>(tokenizer.vocab_size()), options.max_shard_bytes, options.overwrite});

  Progress progress;
  PreprocessReport report;
  Quarantine quarantine(options.output + ".quarantine.jsonl");
  const int cores = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  Pipeline pipeline(options, files, tokenizer, options.workers > 0 ? options.workers : cores);
  while (const auto chunk = pipeline.next()) {
    take(*chunk, shards, report);
    for (const BadLine& bad : chunk->bad) {
      count(report, bad.fault);
      quarantine.add(files[chunk->file], bad);
    }
    report.input_bytes = chunk->input_bytes;
    show_progress(progress, report, chunk->input_bytes, total_bytes);
  }
  progress.clear();
  quarantine.commit();
  if (report.bad() > 0 && options.strict) {
    fail(Status::input, "{} bad lines, first {}: mend them (all are listed in {}) or leave out --strict", report.bad(),
         quarantine.first(), quarantine.path());
  }
  if (report.documents == 0) {
    fail(Status::input, "{}: no document in {} input files, {} bad lines: nothing was written", files.front().string(),
         files.size(), report.bad());
  }
  report.shards = shards.commit();
  report.seconds = progress.seconds();
  return report;
}

}  // namespace dropcycle

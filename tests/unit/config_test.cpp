#include "dropcycle/core/config.hpp"

#include <doctest/doctest.h>

#include <filesystem>
#include <functional>
#include <limits>
#include <random>
#include <set>

#include "../scratch_folder.hpp"
#include "dropcycle/core/error.hpp"
#include "dropcycle/core/file.hpp"
#include "dropcycle/core/suggest.hpp"

using namespace dropcycle;

namespace {

std::string write_config(const std::string& name, const std::string& text) {
  const auto path = scratch_folder() / name;
  write_file(path, text);
  return path.string();
}

// The message of the Error{usage} that `action` throws; empty if it throws none.
std::string message(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    CHECK(error.status() == Status::usage);
    CHECK(std::string(error.what()).find('\n') == std::string::npos);
    return error.what();
  }
  return "";
}

std::string load_message(const std::string& text, const std::vector<std::string>& overrides = {}) {
  const std::string path = write_config("bad.toml", text);
  std::string what = message([&] { load_config(path, overrides); });
  if (what.starts_with(path)) what = "FILE" + what.substr(path.size());
  return what;
}

Config small_config() {
  return parse_config({"model.vocab_size=101", "model.hidden_size=24", "model.intermediate_size=40", "model.layers=2",
                       "model.heads=6", "model.kv_heads=2", "model.experts=3", "train.global_batch=4"});
}

std::string resolve_message(const std::string& override_text) {
  Config config = small_config();
  const std::vector<std::string> overrides = {override_text};
  write_config("base.toml", to_toml(config));
  config = load_config(scratch_folder() / "base.toml", overrides);
  return message([&] { resolve(config); });
}

}  // namespace

TEST_CASE("the distance counts insertions, deletions, substitutions and swaps of neighbours") {
  CHECK(edit_distance("", "abc") == 3);
  CHECK(edit_distance("abc", "") == 3);
  CHECK(edit_distance("heads", "heads") == 0);
  CHECK(edit_distance("heads", "haeds") == 1);
  CHECK(edit_distance("kitten", "sitting") == 3);
  CHECK(edit_distance("ca", "abc") == 3);  // optimal string alignment edits no part twice
  CHECK(nearest("lyers", {"layers", "heads"}) == std::vector<std::string>{"layers"});
  CHECK(nearest("elephant", {"layers", "heads"}).empty());
  CHECK(did_you_mean("beta", {"beta1", "beta2"}) == ": did you mean 'beta1' or 'beta2'?");
}

TEST_CASE("at least 95% of one-edit typos of each key get the right suggestion") {
  int typos = 0, right = 0;
  const auto keys = config_key_names();
  REQUIRE(keys.size() > 60);
  const std::set<std::string> known(keys.begin(), keys.end());
  for (const std::string& key : keys) {
    std::set<std::string> variants;
    for (std::size_t i = 0; i <= key.size(); ++i) {
      for (const char letter : {'a', 'e', 's', 'x', '_', '1'}) {
        variants.insert(std::string(key).insert(i, 1, letter));
        if (i < key.size()) variants.insert(std::string(key).replace(i, 1, 1, letter));
      }
      if (i < key.size()) variants.insert(std::string(key).erase(i, 1));
      if (i + 1 < key.size()) {
        std::string swapped = key;
        std::swap(swapped[i], swapped[i + 1]);
        variants.insert(swapped);
      }
    }
    for (const std::string& typo : variants) {
      if (known.contains(typo)) continue;
      const auto found = nearest(typo, keys);
      ++typos;
      if (!found.empty() && found.front() == key) ++right;
    }
  }
  MESSAGE(right << " of " << typos);
  CHECK(right >= 0.95 * typos);
}

TEST_CASE("a typo in a file and in an override names the place and the nearest key") {
  for (const std::string& key : config_key_names()) {
    const std::string section = key.substr(0, key.find('.')), leaf = key.substr(key.find('.') + 1);
    std::string typo = leaf;
    std::swap(typo[0], typo[1]);
    CHECK(load_message("# first line\n[" + section + "]\n  " + typo + " = 1\n") ==
          "FILE:3:3: unknown key '" + section + "." + typo + "': did you mean '" + leaf + "'?");
    CHECK(message([&] { parse_config({section + "." + typo + "=1"}); }) == "--set " + section + "." + typo +
                                                                               "=1: unknown key '" + section + "." +
                                                                               typo + "': did you mean '" + key + "'?");
  }
  CHECK(load_message("[modle]\nlayers = 2\n") == "FILE:1:2: unknown key 'modle': did you mean 'model'?");
  CHECK(load_message("layers = 2\n") == "FILE:1:1: unknown key 'layers': did you mean 'model.layers'?");
  CHECK(load_message("[[data.train]]\nnam = 'en'\n") == "FILE:2:1: unknown key 'data.train.nam': did you mean 'name'?");
  CHECK(load_message("includ = []\n") == "FILE:1:1: unknown key 'includ': did you mean 'include'?");
  CHECK(load_message("[checkpoint]\nzzzzzzzzz = 1\n") ==
        "FILE:2:1: unknown key 'checkpoint.zzzzzzzzz': expected one of interval, keep_last, keep_every, asynchronous");
}

TEST_CASE("wrong types and values out of bounds name place, value and what was expected") {
  CHECK(load_message("[model]\nlayers = 2.5\n") ==
        "FILE:2:10: 'model.layers' is a number with a fraction or exponent, expected a whole number");
  CHECK(load_message("[model]\nlayers = '2'\n") == "FILE:2:10: 'model.layers' is a text, expected a whole number");
  CHECK(load_message("[optimizer]\nclip = true\n") == "FILE:2:8: 'optimizer.clip' is true or false, expected a number");
  CHECK(load_message("[train]\noutput = 3\n") == "FILE:2:10: 'train.output' is a whole number, expected a text");
  CHECK(load_message("model = 3\n") == "FILE:1:9: 'model' is a whole number, expected a table");
  CHECK(load_message("[data]\ntrain = 'x'\n") == "FILE:2:9: 'data.train' is a text, expected a list of tables");
  CHECK(load_message("[[data.train]]\nshards = [1]\n") ==
        "FILE:2:11: 'data.train.shards' is a whole number, expected a list of texts");
  CHECK(load_message("[parallel]\npipeline_layers = [2, '3']\n") ==
        "FILE:2:23: 'parallel.pipeline_layers' is a text, expected a list of whole numbers");
  CHECK(load_message("[init]\nratio = 1.5\n") == "FILE:2:9: 'init.ratio' is 1.5, expected in [0, 1]");
  CHECK(load_message("[init]\nratio = nan\n") == "FILE:2:9: 'init.ratio' is nan, expected in [0, 1]");
  CHECK(load_message("[optimizer]\nbeta2 = 1\n") == "FILE:2:9: 'optimizer.beta2' is 1.0, expected in [0, 1)");
  CHECK(load_message("[train]\nmicro_batch = 0\n") == "FILE:2:15: 'train.micro_batch' is 0, expected at least 1");
  CHECK(load_message("[parallel]\ntensor = 9999999999\n") ==
        "FILE:2:10: 'parallel.tensor' is 9999999999, expected a number from -2147483648 to 2147483647");
  CHECK(load_message("[device]\nbackend = 'gpu'\n") ==
        "FILE:2:11: 'device.backend' is \"gpu\", expected one of 'cpu', 'cuda', 'reference'");
  CHECK(load_message("[model\n").starts_with("FILE:1:"));
  CHECK(load_message("[model]\nlayers = 1\nlayers = 2\n").starts_with("FILE:3:"));
  CHECK(load_message("", {"init.ratio=-0.1"}) == "--set init.ratio=-0.1: 'init.ratio' is -0.1, expected in [0, 1]");
  CHECK(load_message("", {"model.layers=abc"}).starts_with("--set model.layers=abc: not TOML"));
  CHECK(load_message("", {"model.layers"}) == "--set model.layers: expected --set section.key=value");
}

TEST_CASE("included files come first, overrides last") {
  write_config("base.toml", "[model]\nlayers = 3\nheads = 2\n[[data.train]]\nname = 'a'\n[[data.train]]\nname = 'b'\n");
  write_config("more.toml", "[model]\nheads = 4\n[train]\noutput = 'one'\n");
  const std::string path = write_config(
      "top.toml", "include = ['base.toml', 'more.toml']\n[model]\nlayers = 5\n[[data.train]]\nname = 'c'\n");
  Config config = load_config(path, {});
  CHECK(config.model.layers == 5);
  CHECK(config.model.heads == 4);
  CHECK(config.train.output == "one");
  REQUIRE(config.data.train.size() == 1);
  CHECK(config.data.train[0].name == "c");
  config = load_config(path, {"model.layers=7", "train.output=runs/x y", "optimizer.clip=2", "init.ratio=0.25",
                              "model.tie_embeddings=true", "data.valid=[{name='v', shards=['x*.h5']}]"});
  CHECK(config.model.layers == 7);
  CHECK(config.train.output == "runs/x y");
  CHECK(config.optimizer.clip == 2.0);
  CHECK(config.init.ratio == 0.25);
  CHECK(config.model.tie_embeddings);
  REQUIRE(config.data.valid.size() == 1);
  CHECK(config.data.valid[0].shards == std::vector<std::string>{"x*.h5"});

  CHECK(load_message("include = ['nowhere.toml']\n").find(":1:11: included file") != std::string::npos);
  CHECK(load_message("include = ['bad.toml']\n").find("includes itself") != std::string::npos);
  CHECK_THROWS_AS(load_config(scratch_folder() / "absent.toml", {}), Error);
}

TEST_CASE("to_toml and load_config are inverse") {
  Config config = small_config();
  config.data.tokenizer = "a \"b\" \\ c\td\n\x01\x7f é 日本";
  config.data.train = {{"en", {"en-*.h5", "more'.h5"}, 0.3, 0}, {"ja", {}, 0, 123456789012}};
  config.data.valid = {{"en", {"v.h5"}, 0, 0}};
  config.optimizer = {.learning_rate = 0.1 + 0.2, .min_learning_rate = 1e-30, .clip = 3, .decay_norms = false};
  config.model.rope_scaling = "llama3";
  config.model.rope_factor = 8;
  config.model.rope_original_positions = 4096;
  config.init = {.method = "drop", .from = "x", .ratio = 1.0 / 3, .seed = (1ULL << 53) - 1};
  config.parallel.expert = 3;
  config.checkpoint.asynchronous = false;
  const std::string path = write_config("round.toml", to_toml(config));
  CHECK(load_config(path, {}) == config);
  CHECK(parse_model(to_toml(config.model)) == config.model);
  ModelConfig model = config.model;
  resolve(model);
  CHECK(model.head_size == 4);
  CHECK(parse_model(to_toml(model)) == model);
}

TEST_CASE("resolve fills sizes and names the keys of a broken rule") {
  Config config = small_config();
  config.model.kv_heads = 0;
  resolve(config);
  CHECK(config.model.kv_heads == 6);
  CHECK(config.model.head_size == 4);

  CHECK(resolve_message("model.layers=4") == "");
  CHECK(resolve_message("model.kv_heads=4") == "model.kv_heads is 4, expected a divisor of model.heads (6)");
  CHECK(resolve_message("model.hidden_size=25") ==
        "model.heads is 6, expected a divisor of model.hidden_size (25), or set model.head_size");
  CHECK(resolve_message("model.hidden_size=18").starts_with("model.head_size is 3, expected an even number"));
  CHECK(resolve_message("model.experts_per_token=4") ==
        "model.experts_per_token is 4, expected at most model.experts (3)");
  CHECK(resolve_message("model.rope_factor=4") ==
        "model.rope_factor is 4, but model.rope_scaling is 'none': choose 'linear' or 'llama3'");
  CHECK(resolve_message("model.rope_low_frequency_factor=4") ==
        "model.rope_low_frequency_factor is 4, expected below model.rope_high_frequency_factor (4)");
  CHECK(resolve_message("init.method=drop").starts_with("init.from is empty"));
  CHECK(resolve_message("init.from=x").starts_with("init.from is 'x', but init.method is 'scratch'"));
  CHECK(resolve_message("train.micro_batch=3") ==
        "train.micro_batch is 3, expected a divisor of train.global_batch (4)");
  CHECK(resolve_message("optimizer.min_learning_rate=1").starts_with("optimizer.min_learning_rate is 1"));
  CHECK(resolve_message("device.compute_dtype=f64").starts_with("device.compute_dtype is 'f64'"));
  CHECK(resolve_message("parallel.expert=2") ==
        "parallel.expert is 2, expected a divisor of model.experts (3): choose 1 or 3");
  CHECK(resolve_message("parallel.expert_tensor=3") ==
        "parallel.expert_tensor is 3, expected a divisor of model.intermediate_size (40): choose 2 or 4");
  CHECK(resolve_message("parallel.tensor=2") == "");
  CHECK(resolve_message("parallel.tensor=4") ==
        "parallel.tensor is 4, expected a divisor of model.heads (6): choose 2");
  CHECK(resolve_message("parallel.tensor=3") ==
        "parallel.tensor is 3, expected a divisor or a multiple of model.kv_heads (2): choose 2");
  CHECK(resolve_message("parallel.tensor=6") ==
        "parallel.tensor is 6, expected a divisor of train.micro_batch * data.sequence_length / parallel.context "
        "(1024), the rows of a microbatch: choose 2");
  CHECK(resolve_message("parallel.overlap_dispatch=true") ==
        "parallel.overlap_dispatch is true, expected false: parallel.expert is 1, so no row travels");
  CHECK(resolve_message("parallel.virtual_stages=2") ==
        "parallel.virtual_stages is 2, expected 1: parallel.schedule is '1f1b', not 'interleaved'");
  CHECK(resolve_message("parallel.schedule=interleaved") ==
        "parallel.schedule is 'interleaved' with pipeline 1 and virtual_stages 1, expected at least 2 of both: choose "
        "'1f1b'");
  CHECK(
      resolve_message("parallel.context=3") ==
      "data.sequence_length is 1024, expected a multiple of 2 * parallel.context (6): choose 1020 or 1026, or another "
      "parallel.context");
  CHECK(resolve_message("data.train=[{name='a', shards=['x']}]").find("expected exactly one of them") !=
        std::string::npos);
  CHECK(resolve_message("data.train=[{name='a', shards=['x'], weight=1}, {name='a', shards=['y'], weight=1}]")
            .find("is there twice") != std::string::npos);
  CHECK(resolve_message("data.train=[{name='a', shards=['x'], weight=1}, {name='b', shards=['y'], tokens=1}]")
            .find("mix weight and tokens") != std::string::npos);
  CHECK(resolve_message("data.valid=[{name='a', shards=[]}]").find("data.valid.shards of 'a' is empty") !=
        std::string::npos);

  config = small_config();
  config.train.steps = 10;
  config.optimizer.warmup_steps = 6;
  config.optimizer.constant_steps = 5;
  CHECK(message([&] { resolve(config); }).find("expected at most train.steps (10)") != std::string::npos);
  config = small_config();
  config.init.method = "naive";
  config.init.from = "dense";
  config.model.experts = 0;
  CHECK(message([&] { resolve(config); }).find("set model.experts") != std::string::npos);
  config = small_config();
  config.init.ratio = std::numeric_limits<double>::quiet_NaN();
  CHECK(message([&] { resolve(config); }) == "init.ratio is nan, expected in [0, 1]");
  ModelConfig empty;
  CHECK(message([&] { resolve(empty); }) == "model.vocab_size is 0, expected at least 1");
}

TEST_CASE("lists of numbers are read back as they were written") {
  Config config = small_config();
  config.parallel = parse_config({"parallel.pipeline_layers=[3, 2, 2]"}).parallel;
  CHECK(config.parallel.pipeline_layers == std::vector<std::int64_t>{3, 2, 2});
  const Config again = load_config(write_config("layers.toml", to_toml(config)), {});
  CHECK(again.parallel == config.parallel);
}

TEST_CASE("the description holds every key") {
  const std::string text = describe_config();
  for (const std::string& key : config_key_names()) CHECK(text.find("\n" + key + " ") != std::string::npos);
  CHECK(text.find("\ndata.train.weight ") != std::string::npos);
}

TEST_CASE("damaged files give an error, never a crash") {
  Config config = small_config();
  config.data.train = {{"en", {"en-*.h5"}, 0.5, 0}};
  const std::string whole = to_toml(config);
  std::mt19937 random(1);
  const auto below = [&random](std::size_t n) { return random() % n; };
  int loaded = 0, refused = 0;
  for (int round = 0; round < 3000; ++round) {
    std::string text = whole;
    for (std::size_t edits = 1 + below(3); edits > 0; --edits) {
      const std::size_t place = below(text.size());
      switch (below(4)) {
        case 0:
          text[place] = static_cast<char>(below(256));
          break;
        case 1:
          text.erase(place, 1 + below(20));
          break;
        case 2:
          text.insert(place, 1 + below(300), "[{\"=.,#\n\\"[below(9)]);
          break;
        default:
          text.insert(place, text.substr(below(text.size()), 40));
      }
    }
    try {
      parse_model(text);
      ++loaded;
    } catch (const Error& error) {
      ++refused;
      CHECK(error.status() == Status::usage);
      CHECK(std::string_view(error.what()).find('\n') == std::string_view::npos);
    }
  }
  CHECK(loaded > 10);
  CHECK(refused > 1000);
  CHECK_THROWS_AS(load_config(scratch_folder(), {}), Error);  // a folder
}

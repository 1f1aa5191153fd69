// The verbs upcycle and verify on a small dense checkpoint: what is written, what is refused, what is found out.
#include <doctest/doctest.h>
#include <sys/wait.h>

#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "../unit/checkpoint_support.hpp"
#include "dropcycle/data/shard.hpp"
#include "dropcycle/model/model.hpp"
#include "dropcycle/upcycle/receipt.hpp"

using namespace dropcycle;
using namespace dropcycle::testing;

namespace {

struct Outcome {
  int status = -1;
  std::string output;  // of both streams
};

Outcome run(const std::string& arguments) {
  FILE* pipe = popen((std::string(DROPCYCLE_BINARY) + " " + arguments + " 2>&1").c_str(), "r");
  REQUIRE(pipe != nullptr);
  Outcome outcome;
  std::array<char, 4096> buffer{};
  while (const std::size_t got = std::fread(buffer.data(), 1, buffer.size(), pipe)) {
    outcome.output.append(buffer.data(), got);
  }
  const int status = pclose(pipe);
  outcome.status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return outcome;
}

// One line, the status and the words.
void check_refused(const Outcome& outcome, Status status, const std::string& words) {
  CHECK_MESSAGE(outcome.status == static_cast<int>(status), outcome.output);
  CHECK_MESSAGE(outcome.output.find(words) != std::string::npos, outcome.output);
  const std::size_t line = outcome.output.find("dropcycle: error: ");
  REQUIRE_MESSAGE(line != std::string::npos, outcome.output);
  CHECK(outcome.output.find('\n', line) == outcome.output.size() - 1);
}

ModelConfig dense_model() {
  ModelConfig model;
  model.vocab_size = 31;
  model.hidden_size = 24;
  model.intermediate_size = 45;
  model.layers = 3;
  model.heads = 6;
  model.kv_heads = 2;
  resolve(model);
  return model;
}

// A model's weights in memory.
struct Weights {
  explicit Weights(const ModelConfig& model) : specs(Model::declare(model, Groups::single())) {
    for (const ParameterSpec& spec : specs) {
      memory.emplace_back(static_cast<std::size_t>(spec.shape.elements()));
      state[0].tensors.push_back(whole(spec.name, Tensor(memory.back().data(), spec.shape)));
    }
  }
  std::vector<ParameterSpec> specs;
  std::vector<std::vector<float>> memory;
  std::vector<StateTensors> state = {{"weight", {}}};
};

class DenseRun {
 public:
  DenseRun() : weights_(dense_model()) {
    InitConfig init;
    init.seed = 5;
    initialise(dense_model(), init, weights_.specs, weights_.state[0].tensors);
    CheckpointInfo info;
    info.step = 40;
    info.model = to_toml(dense_model());
    info.tokenizer_digest = "a tokenizer";
    save_checkpoint(path(), info, weights_.state);
  }
  std::filesystem::path path() const { return folder_.path() / "dense"; }
  std::filesystem::path operator/(const char* name) const { return folder_.path() / name; }
  std::string operator()(const char* name) const { return (*this / name).string(); }

 private:
  TestFolder folder_;
  Weights weights_;
};

// Saves the MoE at `from` again under `to` with one weight changed, and a receipt for it that looks right.
void forge(const std::filesystem::path& from, const std::filesystem::path& to, const std::string& name) {
  Checkpoint checkpoint = Checkpoint::open(from);
  Weights weights(parse_model(checkpoint.info().model));
  for (const ShardedTensor& tensor : weights.state[0].tensors) {
    checkpoint.read("weight", tensor);
    if (tensor.name == name) tensor.local.as<float>()[3] += 1e-6F;
  }
  std::filesystem::rename(save_checkpoint(to.parent_path() / "forged", checkpoint.info(), weights.state), to);
  Receipt receipt = parse_receipt(read_file(from / "receipt.json"), from / "receipt.json");
  write_file(to / "receipt.json", to_text(receipt));
  check_refused(run("verify " + to.string()), Status::input, "receipt.json: belongs to another checkpoint");
  receipt.checkpoint_digest = Checkpoint::open(to).digest("weight");
  write_file(to / "receipt.json", to_text(receipt));
}

}  // namespace

TEST_CASE("every method makes a checkpoint that verify recomputes") {
  const DenseRun dense;
  for (const std::string options :
       {"--method drop --ratio 0.29", "--method drop --index-sets per_matrix --dtype bf16 --router uniform_002",
        "--method naive", "--method noise --noise-std 0.01", "--method scratch --seed 9"}) {
    CAPTURE(options);
    std::filesystem::remove_all(dense / "moe");
    const Outcome made = run("upcycle " + dense("dense") + " --output " + dense("moe") +
                             " --experts 3 --experts-per-token 1 " + options);
    REQUIRE_MESSAGE(made.status == 0, made.output);
    CHECK(made.output.find("3 experts, 1 per token") != std::string::npos);
    const bool drop = options.find("0.29") != std::string::npos;
    CHECK_MESSAGE((made.output.find("13 of     45") != std::string::npos) == drop, made.output);
    const Outcome verified = run("verify " + dense("moe") + " --parent " + dense("dense"));
    CHECK_MESSAGE(verified.status == 0, verified.output);
    CHECK_MESSAGE(verified.output.find("is what its receipt says: all bits of") != std::string::npos, verified.output);
    const Checkpoint moe = Checkpoint::open(dense / "moe");
    CHECK(moe.info().tokenizer_digest == "a tokenizer");
    CHECK(parse_model(moe.info().model).experts == 3);
    const bool half = options.find("bf16") != std::string::npos;
    CHECK(moe.find("weight", "layers.2.moe.experts.1.up")->dtype == (half ? DType::bf16 : DType::f32));
    CHECK(moe.find("weight", "layers.2.moe.router")->dtype == DType::f32);
  }
}

TEST_CASE("training in place starts from the same bits as the converted checkpoint") {
  const DenseRun dense;
  REQUIRE(run("upcycle " + dense("dense") + " --output " + dense("moe") + " --experts 4 --seed 3").status == 0);
  Checkpoint parent = Checkpoint::open(find_checkpoint(dense.path()));
  Checkpoint moe = Checkpoint::open(dense / "moe");
  ModelConfig model = dense_model();
  model.experts = 4;
  Weights weights(model), stored(model);
  InitConfig init;
  init.method = "drop";
  init.seed = 3;
  initialise(model, init, weights.specs, weights.state[0].tensors, dense_model(),
             [&](const ShardedTensor& out) { parent.read("weight", out); });
  for (const ShardedTensor& tensor : stored.state[0].tensors) moe.read("weight", tensor);
  CHECK(stored.memory == weights.memory);
}

TEST_CASE("a changed weight is found by name, also under a receipt made to fit") {
  const DenseRun dense;
  REQUIRE(run("upcycle " + dense("dense") + " --output " + dense("moe") + " --experts 2").status == 0);
  for (const char* name : {"layers.1.moe.experts.1.down", "layers.0.moe.router", "final_norm"}) {
    forge(dense / "moe", dense / name, name);
    CHECK(run("verify " + dense(name)).status == 0);  // nothing to find without the parent
    check_refused(run("verify " + dense(name) + " --parent " + dense("dense")), Status::input,
                  std::string(name) + " isn't what method drop with seed 1 makes");
  }
}

TEST_CASE("a changed receipt and another parent are found out") {
  const DenseRun dense, other;
  REQUIRE(run("upcycle " + dense("dense") + " --output " + dense("moe") + " --experts 2").status == 0);
  const auto path = dense / "moe" / "receipt.json";
  const std::string text = read_file(path);
  Receipt receipt = parse_receipt(text, path);
  receipt.blocks[4].mean *= 1.0000001;
  write_file(path, to_text(receipt));
  check_refused(run("verify " + dense("moe") + " --parent " + dense("dense")), Status::input,
                "the receipt says 'layer 0");
  receipt = parse_receipt(text, path);
  receipt.init.ratio = 0.4;
  write_file(path, to_text(receipt));
  check_refused(run("verify " + dense("moe")), Status::input, "belongs to another checkpoint");
  std::string torn = text;
  torn[torn.size() / 2] ^= 1;
  write_file(path, torn);
  check_refused(run("verify " + dense("moe")), Status::input, "receipt.json: damaged");
  write_file(path, text);
  Checkpoint first = Checkpoint::open(find_checkpoint(other.path()));
  Weights weights(dense_model());
  save_checkpoint(other.path(), {.step = 41, .model = first.info().model}, weights.state);
  check_refused(run("verify " + dense("moe") + " --parent " + other("dense")), Status::input, "isn't the parent");
}

TEST_CASE("the receipt's losses: copies lose nothing, fresh weights do, and what was measured is in the receipt") {
  const DenseRun dense;
  ShardWriter shard(dense / "valid.h5", "a tokenizer", 31, "test");
  std::vector<std::int32_t> tokens(700);
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<std::int32_t>(i * i % 31);
  shard.add_document(tokens);
  shard.commit();
  const auto losses_of = [&](const std::string& options) {
    std::filesystem::remove_all(dense / "moe");
    const Outcome made = run("upcycle " + dense("dense") + " --output " + dense("moe") + " --experts 4 --validation " +
                             dense("valid.h5") + " " + options);
    REQUIRE_MESSAGE(made.status == 0, made.output);
    CHECK(made.output.find("held-out loss on 699 tokens: dense ") != std::string::npos);
    const Outcome verified = run("verify " + dense("moe") + " --parent " + dense("dense"));
    CHECK_MESSAGE(verified.status == 0, verified.output);
    const auto path = dense / "moe" / "receipt.json";
    return *parse_receipt(read_file(path), path).losses;
  };
  const ReceiptLosses naive = losses_of("--method naive"), drop = losses_of("--method drop --ratio 1");
  CHECK(naive.tokens == 699);
  CHECK(!(std::fabs(naive.dense - std::log(31.0)) > 0.5));
  CHECK(!(std::fabs(naive.moe - naive.dense) > 2e-3));
  CHECK(naive.dense == drop.dense);
  CHECK(drop.moe != naive.moe);
  REQUIRE(naive.load_entropy.size() == 3);
  for (const double entropy : naive.load_entropy) CHECK((entropy > 0 && entropy <= std::log(4.0) + 1e-9));
  check_refused(run("upcycle " + dense("dense") + " --output " + dense("no") + " --validation " + dense("gone.h5")),
                Status::input, "gone.h5");
  CHECK(!std::filesystem::exists(dense / "no"));
}

TEST_CASE("what can't be is refused in one line") {
  const DenseRun dense;
  const std::string start = "upcycle " + dense("dense") + " --output " + dense("moe") + " ";
  check_refused(run(start + "--ratio 1.5"), Status::usage, "r is 1.5: expected a number from 0");
  check_refused(run(start + "--experts 2 --experts-per-token 3"), Status::usage, "experts_per_token");
  check_refused(run(start + "--method copy"), Status::usage, "copy");
  check_refused(run("upcycle " + dense("nothing") + " --output " + dense("moe")), Status::input, "no such folder");
  CHECK(!std::filesystem::exists(dense / "moe"));
  REQUIRE(run(start).status == 0);
  check_refused(run(start), Status::usage, "isn't empty");
  check_refused(run("upcycle " + dense("moe") + " --output " + dense("again")), Status::input, "has 8 experts already");
  const auto file = dense / "moe" / "rank_00000.h5";
  std::filesystem::resize_file(file, std::filesystem::file_size(file) - 1);
  check_refused(run("verify " + dense("moe")), Status::input, "rank_00000.h5: has ");
  check_refused(run("verify " + file.string()), Status::input, "rank_00000.h5");
  check_refused(run("upcycle " + dense("dense") + " --output /proc/moe"), Status::storage, "/proc/moe");
}

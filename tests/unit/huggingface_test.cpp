// Hugging Face folders: import and export give back every bit, and what isn't whole or isn't meant is refused.
#include <doctest/doctest.h>

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "checkpoint_support.hpp"
#include "dropcycle/checkpoint/huggingface.hpp"
#include "dropcycle/checkpoint/safetensors.hpp"
#include "dropcycle/model/model.hpp"

using namespace dropcycle;
using namespace dropcycle::testing;

namespace {

namespace fs = std::filesystem;

struct Tensors : std::map<std::string, std::pair<SafetensorsEntry, std::string>> {  // entry and bytes
  void add(const std::string& name, DType dtype, const std::vector<std::int64_t>& shape) {
    const TestTensor data(dtype, Shape(std::span(shape)), name);
    const auto bytes = static_cast<std::size_t>(data.tensor().bytes());
    (*this)[name] = {{name, std::string(safetensors_name(dtype)), shape, 0, bytes},
                     std::string(static_cast<const char*>(data.tensor().data), bytes)};
  }
};

struct Kind {
  const char* architecture = "LlamaForCausalLM";
  DType dtype = DType::f32;
  bool tied = false, fused = false;
  std::size_t files = 1;
};

std::string config_text(const Kind& kind) {
  return std::string(R"({"architectures": [")") + kind.architecture + R"("], "vocab_size": 40, "hidden_size": 16,
    "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
    "max_position_embeddings": 512, "num_local_experts": 3, "sliding_window": null, "tie_word_embeddings": )" +
         (kind.tied ? "true" : "false") + "}";
}

Tensors make_tensors(const Kind& kind) {
  Tensors tensors;
  const ModelConfig model = parse_huggingface_config(config_text(kind), "config").model;
  for (const ParameterSpec& spec : Model::declare(model, Groups::single())) {
    const std::string name = huggingface_name(spec.name);
    if (kind.fused && name.find("block_sparse_moe") != std::string::npos) continue;
    tensors.add(name, kind.dtype, {spec.shape.sizes().begin(), spec.shape.sizes().end()});
  }
  for (std::int64_t layer = 0; kind.fused && layer < model.layers; ++layer) {
    const std::string prefix = fmt::format("model.layers.{}.mlp.", layer);
    tensors.add(prefix + "gate.weight", kind.dtype, {3, 16});
    tensors.add(prefix + "experts.gate_up_proj", kind.dtype, {3, 48, 16});
    tensors.add(prefix + "experts.down_proj", kind.dtype, {3, 16, 24});
  }
  return tensors;
}

void write_weights(const fs::path& path, const Tensors& tensors) {
  std::vector<SafetensorsEntry> entries;
  for (const auto& [name, tensor] : tensors) entries.push_back(tensor.first);
  SafetensorsWriter writer(path, entries);
  for (const auto& [name, tensor] : tensors) writer.append(tensor.second.data(), tensor.second.size());
  writer.finish();
}

void write_folder(const fs::path& folder, const Kind& kind, const Tensors& tensors) {
  fs::create_directories(folder);
  write_file(folder / "config.json", config_text(kind));
  if (kind.files == 1) return write_weights(folder / "model.safetensors", tensors);
  std::vector<Tensors> parts(kind.files);
  std::string map;
  for (const auto& [name, tensor] : tensors) {
    const std::size_t part = std::hash<std::string>()(name) % kind.files;
    parts[part][name] = tensor;
    map += fmt::format("{}\"{}\": \"part-{}.safetensors\"", map.empty() ? "" : ", ", name, part);
  }
  for (std::size_t part = 0; part < kind.files; ++part) {
    write_weights(folder / fmt::format("part-{}.safetensors", part), parts[part]);
  }
  write_file(folder / "model.safetensors.index.json", "{\"weight_map\": {" + map + "}}");
}

// All tensors of a folder's safetensors files: type, shape and bytes.
std::map<std::string, std::string> read_folder(const fs::path& folder) {
  std::map<std::string, std::string> all;
  for (const auto& file : fs::directory_iterator(folder)) {
    if (file.path().extension() != ".safetensors") continue;
    const std::string content = read_file(file.path());
    std::uint64_t length = 0;
    std::memcpy(&length, content.data(), sizeof length);
    const std::string header = content.substr(8, length);
    for (const SafetensorsEntry& entry : parse_safetensors_header(header, content.size() - 8 - length, "x")) {
      CHECK(!all.contains(entry.name));
      all[entry.name] = fmt::format("{} [{}] ", entry.dtype, fmt::join(entry.shape, ", ")) +
                        content.substr(entry.offset, entry.size_bytes);
    }
  }
  return all;
}

std::string error_of(Status status, const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    CHECK_MESSAGE(error.status() == status, error.what());
    return error.what();
  }
  return "no error";
}

void check_refused(const fs::path& folder, const std::string& words) {
  const std::string message = error_of(Status::input, [&] { Checkpoint::open(folder); });
  CHECK_MESSAGE(message.find(words) != std::string::npos, message, " lacks ", words);
  CHECK(message.find('\n') == std::string::npos);
}

constexpr Kind kKinds[] = {{.files = 3},
                           {.dtype = DType::bf16, .tied = true},
                           {.architecture = "MistralForCausalLM", .dtype = DType::f16},
                           {.architecture = "MixtralForCausalLM", .dtype = DType::bf16, .files = 2},
                           {.architecture = "MixtralForCausalLM", .dtype = DType::f16, .tied = true, .fused = true}};

}  // namespace

TEST_CASE("import then export gives back every bit, and the digest of folder and checkpoint is the same") {
  const TestFolder folder;
  for (const Kind& kind : kKinds) {
    CAPTURE(kind.architecture);
    const fs::path source = folder.path() / "source", checkpoint = folder.path() / "checkpoint",
                   output = folder.path() / "output";
    for (const fs::path& path : {source, checkpoint, output}) fs::remove_all(path);
    write_folder(source, kind, make_tensors(kind));
    Checkpoint before = Checkpoint::open(source);
    CHECK(!before.digests_known());
    import_model(before, checkpoint);
    Checkpoint imported = Checkpoint::open(checkpoint);
    imported.verify();
    CHECK(imported.digests_known());
    Checkpoint fresh = Checkpoint::open(source);
    CHECK(imported.digest("weight") == fresh.digest("weight"));
    CHECK(fresh.digests_known());
    CHECK(imported.info().model == before.info().model);
    CHECK(imported.info().huggingface == before.info().huggingface);
    export_model(imported, output, {.max_shard_bytes = 6000});
    CHECK(fs::exists(output / "model.safetensors.index.json"));
    const auto theirs = read_folder(source), ours = read_folder(output);
    if (kind.fused) {
      const std::string fused = theirs.at("model.layers.1.mlp.experts.gate_up_proj");
      const std::string up = ours.at("model.layers.1.block_sparse_moe.experts.2.w3.weight");
      const std::size_t bytes = 24 * 16 * 2;
      CHECK(up.substr(up.size() - bytes) == fused.substr(fused.size() - bytes));
      const std::string gate = ours.at("model.layers.1.block_sparse_moe.experts.0.w1.weight");
      CHECK(gate.substr(gate.size() - bytes) == fused.substr(fused.size() - 6 * bytes, bytes));
      CHECK(Checkpoint::open(output).digest("weight") == fresh.digest("weight"));
    } else {
      CHECK(theirs == ours);
    }
  }
}

TEST_CASE("a part of a weight is read from a folder as from a checkpoint") {
  const TestFolder folder;
  const Kind kind{.dtype = DType::f16};
  const Tensors tensors = make_tensors(kind);
  write_folder(folder.path(), kind, tensors);
  Checkpoint checkpoint = Checkpoint::open(folder.path());
  const std::string& bytes = tensors.at("model.layers.0.mlp.up_proj.weight").second;  // [24, 16]
  std::vector<float> part(6);
  checkpoint.read("weight", {"layers.0.mlp.up", Shape{24, 16}, Shape{5, 7}, Tensor(part.data(), Shape{2, 3})});
  for (std::size_t i = 0; i < part.size(); ++i) {
    F16 value;
    std::memcpy(&value, bytes.data() + ((5 + i / 3) * 16 + 7 + i % 3) * 2, 2);
    CHECK(part[i] == static_cast<float>(value));
  }
}

TEST_CASE("tensors that lack, don't belong or have another shape or type are refused by name") {
  const TestFolder folder;
  const Kind kind;
  const auto with = [&](const std::function<void(Tensors&)>& change) {
    Tensors tensors = make_tensors(kind);
    change(tensors);
    write_folder(folder.path(), kind, tensors);
    return folder.path();
  };
  check_refused(with([](Tensors& t) { t.erase("model.layers.1.self_attn.k_proj.weight"); }),
                "tensor 'model.layers.1.self_attn.k_proj.weight' is missing");
  check_refused(with([](Tensors& t) { t.erase("lm_head.weight"); }), "tensor 'lm_head.weight' is missing");
  check_refused(with([](Tensors& t) { t.add("model.layers.1.self_attn.q_proj.bias", DType::f32, {24}); }),
                "tensor 'model.layers.1.self_attn.q_proj.bias' doesn't belong to the model");
  check_refused(with([](Tensors& t) {
                  t.add("model.layers.2.mlp.up_proj.weight", DType::f32, {24, 16});
                }),
                "tensor 'model.layers.2.mlp.up_proj.weight' doesn't belong");
  check_refused(with([](Tensors& t) { t.add("model.norm.weight", DType::f32, {17}); }),
                "tensor 'model.norm.weight' has shape [17], expected [16]");
  check_refused(with([](Tensors& t) {
                  t.add("model.layers.0.mlp.up_proj.weight", DType::f32, {16, 24});
                }),
                "has shape [16, 24], expected [24, 16]");
  check_refused(with([](Tensors& t) { t.at("model.norm.weight").first.dtype = "I32"; }),
                "tensor 'model.norm.weight' has type I32, expected F32, BF16 or F16");
  with([](Tensors& t) { t.add("model.layers.0.self_attn.rotary_emb.inv_freq", DType::f32, {3}); });
  CHECK(Checkpoint::open(folder.path()).find("weight", "layers.0.attention.query") != nullptr);
}

TEST_CASE("a tied model may hold its head a second time, if it is the embedding") {
  const TestFolder folder;
  const Kind kind{.tied = true};
  Tensors tensors = make_tensors(kind);
  auto head = tensors.at("model.embed_tokens.weight");
  head.first.name = "lm_head.weight";
  tensors["lm_head.weight"] = head;
  write_folder(folder.path(), kind, tensors);
  CHECK(Checkpoint::open(folder.path()).find("weight", "head") == nullptr);
  tensors["lm_head.weight"].second[77] = static_cast<char>(tensors["lm_head.weight"].second[77] ^ 1);
  write_folder(folder.path(), kind, tensors);
  check_refused(folder.path(), "tensor 'lm_head.weight' isn't 'model.embed_tokens.weight', but tie_word_embeddings");
}

TEST_CASE("the hub's cache: links to the model's own blobs are followed, others aren't") {
  const TestFolder folder;
  const fs::path model = folder.path() / "models--org--name", snapshot = model / "snapshots/1f2e",
                 blobs = model / "blobs";
  const Kind kind;
  write_folder(folder.path() / "plain", kind, make_tensors(kind));
  fs::create_directories(blobs);
  fs::create_directories(snapshot);
  for (const char* name : {"config.json", "model.safetensors"}) {
    fs::copy(folder.path() / "plain" / name, blobs / (std::string("0a-") + name));
    fs::create_symlink(std::string("../../blobs/0a-") + name, snapshot / name);
  }
  fs::create_symlink("models--org--name/snapshots/1f2e", folder.path() / "latest");  // the user's own link
  for (const fs::path& path : {snapshot, folder.path() / "latest", snapshot / "."}) {
    CHECK(Checkpoint::open(path).digest("weight") == Checkpoint::open(folder.path() / "plain").digest("weight"));
  }
  fs::copy(folder.path() / "plain/config.json", model / "config.json");
  fs::copy(folder.path() / "plain/config.json", folder.path() / "config.json");
  fs::create_symlink("../config.json", blobs / "leaves");
  fs::create_directory(blobs / "folder");
  const auto refused = [&](const fs::path& target, const std::string& words) {
    CAPTURE(target);
    fs::remove(snapshot / "config.json");
    fs::create_symlink(target, snapshot / "config.json");
    check_refused(snapshot, "config.json: " + words);
  };
  const std::string link = "is a symbolic link, which isn't followed but in the hub's cache";
  refused("../../config.json", link);
  refused("../../../config.json", link);
  refused("../../blobs/../config.json", link);
  refused(folder.path() / "config.json", link);
  refused("../../blobs/leaves", link);
  refused("../../blobs/folder", "isn't a regular file");
  refused("../../blobs/", link);
  fs::remove(snapshot / "config.json");
  fs::create_symlink("../../blobs/0a-config.json", snapshot / "config.json");
  fs::rename(blobs, folder.path() / "elsewhere");
  fs::create_directory_symlink("../elsewhere", blobs);
  check_refused(snapshot, "config.json: ");
  fs::remove(blobs);
  fs::rename(folder.path() / "elsewhere", blobs);
  fs::rename(model, folder.path() / "renamed");
  check_refused(folder.path() / "renamed/snapshots/1f2e", "config.json: " + link);
}

TEST_CASE("files are plain files of the folder, and the index tells the truth") {
  const TestFolder folder;
  const Kind single, many{.files = 2};
  const Tensors tensors = make_tensors(single);
  const fs::path path = folder.path() / "model";
  const auto renewed = [&](const Kind& kind) {
    fs::remove_all(path);
    write_folder(path, kind, tensors);
    return path;
  };
  fs::rename(renewed(single) / "model.safetensors", folder.path() / "weights");
  check_refused(path, "has neither model.safetensors nor model.safetensors.index.json");
  fs::create_symlink("../weights", path / "model.safetensors");
  check_refused(path, "model.safetensors: is a symbolic link, which isn't followed");
  fs::remove(path / "model.safetensors");
  fs::create_directory(path / "model.safetensors");
  check_refused(path, "model.safetensors: isn't a regular file");
  fs::rename(renewed(single) / "config.json", folder.path() / "config");
  fs::create_symlink("../config", path / "config.json");
  check_refused(path, "config.json: is a symbolic link");
  fs::create_symlink("../../blobs/config", renewed(single) / "tokenizer.json");
  check_refused(path, "tokenizer.json: is a symbolic link");
  fs::remove(renewed(many) / "part-1.safetensors");
  check_refused(path, "part-1.safetensors: can't be opened");
  write_weights(renewed(many) / "part-1.safetensors", {});
  check_refused(path, "model.safetensors.index.json: says that tensor '");
  write_weights(renewed(many) / "part-1.safetensors", tensors);
  check_refused(path, "is in another file too");
  Tensors more;
  more.add("extra", DType::f32, {1});
  renewed(many);
  std::string index = read_file(path / "model.safetensors.index.json");
  write_weights(path / "part-2.safetensors", more);
  write_file(path / "model.safetensors.index.json",
             index.replace(index.find("part-0"), 6, "part-2"));  // the first tensor of part 0 isn't there
  check_refused(path, "says that tensor '");
  renewed(many);
  Tensors both = tensors;
  both.erase("lm_head.weight");
  fs::remove(path / "part-0.safetensors");
  write_weights(path / "part-1.safetensors", both);
  write_file(path / "model.safetensors.index.json",
             "{\"weight_map\": {\"model.norm.weight\": \"part-1.safetensors\"}}");
  check_refused(path, "which model.safetensors.index.json doesn't know");
}

TEST_CASE("the tokenizer's files travel along, and damage to them shows") {
  const TestFolder folder;
  const fs::path source = folder.path() / "source", checkpoint = folder.path() / "checkpoint";
  write_folder(source, {}, make_tensors({}));
  write_file(source / "tokenizer.json", "{\"a\": 1}");
  write_file(source / "tokenizer_config.json", "{}");
  write_file(source / "README.md", "not a tokenizer's");
  Checkpoint before = Checkpoint::open(source);
  CHECK(before.tokenizer_folder() == source);
  CHECK(before.tokenizer_files().size() == 2);
  import_model(before, checkpoint, [&](const fs::path& path) { before.copy_tokenizer(path); });
  Checkpoint imported = Checkpoint::open(checkpoint);
  imported.verify();
  CHECK(imported.tokenizer_folder() == checkpoint / "tokenizer");
  CHECK(imported.info().tokenizer_digest == before.tokenizer_files()[0].digest);
  REQUIRE(imported.tokenizer_files().size() == 2);
  CHECK(imported.read_tokenizer_file(imported.tokenizer_files()[0]) == "{\"a\": 1}");
  write_file(source / "tokenizer.model", "another form");
  CHECK(Checkpoint::open(source).info().tokenizer_digest.empty());
  write_file(checkpoint / "tokenizer" / "tokenizer.json", "{\"a\": 2}");
  CHECK(error_of(Status::input, [&] { imported.verify(); }).find("tokenizer.json: damaged") != std::string::npos);
}

TEST_CASE("a checkpoint that many ranks wrote is exported like one") {
  const TestFolder folder;
  write_folder(folder.path() / "source", {}, make_tensors({}));
  Checkpoint source = Checkpoint::open(folder.path() / "source");
  const CheckpointInfo info = source.info();
  // Rows of some tensors, columns of others, on three ranks.
  std::vector<std::vector<std::vector<float>>> memory(3);
  std::vector<std::vector<StateTensors>> states(3, {{"weight", {}}});
  for (const ParameterEntry& parameter : source.parameters()) {
    const int dim = parameter.shape.dims() - 1;
    for (std::int64_t rank = 0; rank < 3; ++rank) {
      const std::int64_t size = parameter.shape[dim], first = size * rank / 3, last = size * (rank + 1) / 3;
      ShardedTensor part{parameter.name, parameter.shape, parameter.slices.front().offset, {}};
      Shape shape = parameter.shape;
      shape.set(dim, last - first);
      part.offset.set(dim, first);
      auto& data = memory[static_cast<std::size_t>(rank)].emplace_back(static_cast<std::size_t>(shape.elements()));
      part.local = Tensor(data.data(), shape);
      source.read("weight", part);
      states[static_cast<std::size_t>(rank)][0].tensors.push_back(part);
    }
  }
  fs::path saved;
  run_ranks(3, [&](const RankGroup& ranks) {
    const fs::path path =
        save_checkpoint(folder.path() / "run", info, states[static_cast<std::size_t>(ranks.rank)], ranks);
    if (ranks.rank == 0) saved = path;
  });
  Checkpoint checkpoint = Checkpoint::open(saved);
  export_model(checkpoint, folder.path() / "output", {});
  CHECK(fs::exists(folder.path() / "output" / "model.safetensors"));
  CHECK(read_folder(folder.path() / "output") == read_folder(folder.path() / "source"));
}

TEST_CASE("an export in another type rounds each number, and what f16 can't hold is refused") {
  const TestFolder folder;
  Tensors tensors = make_tensors({});
  const float large = 70000;
  std::memcpy(tensors.at("lm_head.weight").second.data() + 40, &large, sizeof large);
  write_folder(folder.path() / "source", {}, tensors);
  Checkpoint source = Checkpoint::open(folder.path() / "source");
  export_model(source, folder.path() / "bf16", {.dtype = DType::bf16});
  const std::string data = read_folder(folder.path() / "bf16").at("lm_head.weight");
  BF16 value;
  std::memcpy(&value, data.data() + std::string("BF16 [40, 16] ").size() + 20, sizeof value);
  CHECK(static_cast<float>(value) == static_cast<float>(BF16(large)));
  const std::string message =
      error_of(Status::input, [&] { export_model(source, folder.path() / "f16", {.dtype = DType::f16}); });
  CHECK(message == "tensor 'lm_head.weight' holds 70000, which f16 can't: export it as bf16 or f32");
  CHECK(!fs::exists(folder.path() / "f16"));
  CHECK(!fs::exists(folder.path() / "f16.tmp"));
}

TEST_CASE("an import or export that fails anywhere leaves nothing under its name") {
  const TestFolder folder;
  const fs::path source = folder.path() / "source", output = folder.path() / "output";
  write_folder(source, {}, make_tensors({}));
  write_file(source / "tokenizer.json", "{}");
  fs::create_directories(output);
  write_file(output / "note", "mine");
  Checkpoint checkpoint = Checkpoint::open(source);
  const auto write_tokenizer = [&](const fs::path& folder_path) { checkpoint.copy_tokenizer(folder_path); };
  for (const bool importing : {true, false}) {
    const auto run = [&] {
      importing ? import_model(checkpoint, output, write_tokenizer)
                : export_model(checkpoint, output, {.max_shard_bytes = 20000, .write_tokenizer = write_tokenizer});
    };
    CHECK(error_of(Status::usage, run).find("isn't empty") != std::string::npos);
    CHECK(read_file(output / "note") == "mine");
  }
  fs::remove_all(output);
  for (const bool importing : {true, false}) {
    int failures = 0;
    for (int call = 1;; ++call) {
      FaultyFileSystem faulty;
      faulty.arm(call, FaultyFileSystem::Fault::tear, ENOSPC);
      const std::string message = error_of(Status::storage, [&] {
        importing ? import_model(checkpoint, output, write_tokenizer)
                  : export_model(checkpoint, output, {.max_shard_bytes = 20000, .write_tokenizer = write_tokenizer});
      });
      if (faulty.calls() < call) break;
      if (message == "no error") continue;
      ++failures;
      // Only the sync of the parent folder comes after the rename.
      if (fs::exists(output)) {
        CHECK(Checkpoint::open(output).digest("weight") == checkpoint.digest("weight"));
        fs::remove_all(output);
      }
      CHECK(!fs::exists(output.string() + ".tmp"));
    }
    CHECK(failures > 10);
    CHECK(Checkpoint::open(output).digest("weight") == checkpoint.digest("weight"));
    fs::remove_all(output);
  }
}

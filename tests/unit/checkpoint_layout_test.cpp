// Any layout reads what any other wrote; which checkpoint is taken, kept and removed.
#include <doctest/doctest.h>
#include <fcntl.h>

#include <algorithm>

#include "checkpoint_support.hpp"

using namespace dropcycle;
using namespace dropcycle::testing;

namespace {

struct Box {
  Shape offset, shape;
};

// Cuts a shape into boxes at random until there are `count` (or nothing is left to cut).
std::vector<Box> cut(const Shape& shape, std::size_t count, const RandomStream& random, std::uint64_t& draw) {
  Shape origin = shape;
  for (int dim = 0; dim < origin.dims(); ++dim) origin.set(dim, 0);
  std::vector<Box> boxes = {{origin, shape}};
  for (int attempt = 0; attempt < 50 && boxes.size() < count; ++attempt) {
    Box& box = boxes[random.bits(draw++) % boxes.size()];
    if (shape.dims() == 0) break;
    const int dim = static_cast<int>(random.bits(draw++) % static_cast<std::uint32_t>(shape.dims()));
    if (box.shape[dim] < 2) continue;
    const std::int64_t first = 1 + random.bits(draw++) % static_cast<std::uint32_t>(box.shape[dim] - 1);
    Box rest = box;
    rest.offset.set(dim, box.offset[dim] + first);
    rest.shape.set(dim, box.shape[dim] - first);
    box.shape.set(dim, first);
    boxes.push_back(rest);
  }
  return boxes;
}

std::int64_t global_index(const Shape& shape, const Box& box, std::int64_t local) {
  std::int64_t index = 0, stride = 1;
  for (int dim = shape.dims() - 1; dim >= 0; --dim) {
    index += (box.offset[dim] + local % box.shape[dim]) * stride;
    local /= box.shape[dim];
    stride *= shape[dim];
  }
  return index;
}

float value_at(std::int64_t index) { return static_cast<float>(index) * 0.25F + 1.0F; }

void save_step(const std::filesystem::path& folder, std::int64_t step, CheckpointConfig policy = {}) {
  float value = static_cast<float>(step);
  const std::vector<StateTensors> state = {{"weight", {whole("x", Tensor(&value, {1}))}}};
  CheckpointWriter writer(folder, policy, {});
  CheckpointInfo info;
  info.step = step;
  writer.start(info, state);
  const SaveResult result = writer.finish();
  CHECK_MESSAGE(result.state == SaveResult::State::committed, result.error);
}

std::vector<std::string> names_in(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) names.push_back(entry.path().filename());
  std::ranges::sort(names);
  return names;
}

void damage(const std::filesystem::path& checkpoint) {
  Checkpoint whole_one = Checkpoint::open(checkpoint);
  const int descriptor = ::open((checkpoint / "rank_00000.h5").c_str(), O_RDWR);
  const char changed = 77;
  REQUIRE(::pwrite(descriptor, &changed, 1, static_cast<off_t>(whole_one.parameters()[0].slices[0].byte_offset)) == 1);
  ::close(descriptor);
}

}  // namespace

TEST_CASE("slices written by some ranks are read as any other slices by other ranks") {
  const RandomStream random(3, Purpose::test, "boxes");
  std::uint64_t draw = 0;
  for (const Shape& shape : {Shape{}, Shape{13}, Shape{9, 14}, Shape{3, 8, 5}, Shape{4, 3, 7, 6}, Shape{1, 1, 11, 1}}) {
    for (int round = 0; round < 8; ++round) {
      const TestFolder folder;
      const int writers = 1 + round % 4;
      const auto boxes = cut(shape, static_cast<std::size_t>(1 + round * 2), random, draw);
      run_ranks(writers, [&](const RankGroup& ranks) {
        std::vector<std::vector<float>> memory;
        StateTensors kind{"weight", {}};
        for (std::size_t i = 0; i < boxes.size(); ++i) {
          memory.emplace_back(static_cast<std::size_t>(boxes[i].shape.elements()));
          for (std::size_t j = 0; j < memory.back().size(); ++j) {
            memory.back()[j] = value_at(global_index(shape, boxes[i], static_cast<std::int64_t>(j)));
          }
          // Every rank holds every box; one of them writes it.
          const bool writer = static_cast<int>(i) % ranks.size == ranks.rank;
          kind.tensors.push_back({"x", shape, boxes[i].offset, Tensor(memory.back().data(), boxes[i].shape), writer});
        }
        save_checkpoint(folder.path(), {}, std::vector<StateTensors>{kind}, ranks);
      });
      Checkpoint checkpoint = Checkpoint::open(folder.path() / "step_00000000");
      CHECK(checkpoint.parameters().size() == 1);
      CHECK(checkpoint.files().size() == static_cast<std::size_t>(writers));
      for (const Box& box : cut(shape, static_cast<std::size_t>(1 + (7 - round) * 2), random, draw)) {
        for (int pass = 0; pass < 2; ++pass) {  // the first reads whole slices for their digests, the second parts
          std::vector<float> part(static_cast<std::size_t>(box.shape.elements()), -1.0F);
          checkpoint.read("weight", {"x", shape, box.offset, Tensor(part.data(), box.shape), true});
          int wrong = 0;
          for (std::size_t j = 0; j < part.size(); ++j) {
            wrong += part[j] != value_at(global_index(shape, box, static_cast<std::int64_t>(j)));
          }
          CHECK(wrong == 0);
        }
      }
    }
  }
}

TEST_CASE("slices larger than the reading buffer") {
  const TestFolder folder;
  const Shape shape{1500, 2001};
  const TestTensor tensor(DType::f32, shape);
  const std::vector<StateTensors> state = {{"weight", {whole("x", tensor.tensor())}}};
  Checkpoint checkpoint = Checkpoint::open(save_checkpoint(folder.path(), {}, state));
  TestTensor part(DType::f32, {1400, 1900});
  checkpoint.read("weight", {"x", shape, {50, 99}, part.tensor(), true});
  int wrong = 0;
  for (std::int64_t i = 0; i < 1400; ++i) {
    wrong += std::memcmp(part.tensor().as<float>() + i * 1900, tensor.tensor().as<float>() + (i + 50) * 2001 + 99,
                         1900 * sizeof(float)) != 0;
  }
  CHECK(wrong == 0);
}

TEST_CASE("a tensor that no rank wrote whole isn't committed") {
  const TestFolder folder;
  const TestTensor tensor(DType::f32, {4, 6});
  const std::vector<StateTensors> state = {{"weight", {{"x", {4, 7}, {0, 1}, tensor.tensor(), true}}}};
  CHECK_THROWS_WITH_AS(save_checkpoint(folder.path(), {}, state), doctest::Contains("24 of 28 elements"), Error);
  CHECK(names_in(folder.path()).empty());
}

TEST_CASE("the newest keep_last checkpoints and every keep_every-th stay") {
  const TestFolder folder;
  CheckpointConfig policy;
  policy.keep_last = 2;
  policy.keep_every = 30;
  std::filesystem::create_directories(folder.path() / "step_00000005.tmp");
  write_file(folder.path() / "metrics.jsonl", "{}");
  for (std::int64_t step = 10; step <= 80; step += 10) save_step(folder.path(), step, policy);
  CHECK(names_in(folder.path()) ==
        std::vector<std::string>{"metrics.jsonl", "step_00000030", "step_00000060", "step_00000070", "step_00000080"});
  // Going on from an earlier one: what was just saved is never removed in favour of a later one.
  policy.keep_last = 1;
  policy.keep_every = 0;
  save_step(folder.path(), 65, policy);
  CHECK(names_in(folder.path()) ==
        std::vector<std::string>{"metrics.jsonl", "step_00000065", "step_00000070", "step_00000080"});
}

TEST_CASE("saving the same step again replaces it") {
  const TestFolder folder;
  save_step(folder.path(), 10);
  damage(folder.path() / "step_00000010");
  save_step(folder.path(), 10);
  Checkpoint::open(folder.path() / "step_00000010").verify();
  CHECK(names_in(folder.path()) == std::vector<std::string>{"step_00000010"});
}

TEST_CASE("resuming takes the newest whole checkpoint on all ranks") {
  const TestFolder folder;
  const auto load_on = [&](int size) {
    std::vector<float> values(static_cast<std::size_t>(size), -1.0F);
    run_ranks(size, [&](const RankGroup& ranks) {
      float& value = values[static_cast<std::size_t>(ranks.rank)];
      const auto path = load_newest(folder.path() / "run", ranks, [&](Checkpoint& checkpoint) {
        // Only the last rank reads the data, so only it can see the damage.
        if (ranks.rank == size - 1) checkpoint.read("weight", whole("x", Tensor(&value, {1})));
        value = static_cast<float>(checkpoint.info().step);
      });
      if (!path) value = -2.0F;
    });
    for (const float value : values) CHECK(value == values[0]);
    return values[0];
  };
  CHECK(load_on(1) == -2.0F);  // no folder
  std::filesystem::create_directories(folder.path() / "run" / "step_00000099.tmp");
  CHECK(load_on(3) == -2.0F);  // killed before the first checkpoint
  for (std::int64_t step = 1; step <= 3; ++step) save_step(folder.path() / "run", step, {.keep_last = 0});
  CHECK(load_on(3) == 3.0F);
  CHECK(find_checkpoint(folder.path() / "run").filename() == "step_00000003");
  CHECK(find_checkpoint(folder.path() / "run" / "step_00000001").filename() == "step_00000001");
  damage(folder.path() / "run" / "step_00000003");
  CHECK(load_on(3) == 2.0F);
  std::filesystem::resize_file(folder.path() / "run" / "step_00000002" / "manifest.json", 100);
  CHECK(load_on(2) == 1.0F);
  damage(folder.path() / "run" / "step_00000001");
  CHECK_THROWS_WITH_AS(load_on(2), doctest::Contains("none of its 3 checkpoints can be loaded"), Error);
}

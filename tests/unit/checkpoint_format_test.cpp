// Content of a checkpoint: what is saved is what is read, by us and by HDF5; every changed byte shows.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <hdf5.h>

#include <cmath>
#include <fstream>

#include "checkpoint_support.hpp"
#include "dropcycle/core/convert.hpp"
#include "dropcycle/core/sealed.hpp"

using namespace dropcycle;
using namespace dropcycle::testing;

namespace {

CheckpointInfo some_info(std::int64_t step) {
  CheckpointInfo info;
  info.step = step;
  info.model = "vocab_size = 7\n";
  info.config = "[train]\nsteps = 3\n";
  info.data_position = R"({"sample":12})";
  info.seed = ~std::uint64_t{0};
  info.tokenizer_digest = "abc";
  info.origin = R"({"method":"drop"})";
  info.versions["onednn"] = "3.2";
  return info;
}

struct Model {
  TestTensor embedding{DType::f32, {17, 24}, "embedding"};
  TestTensor norm{DType::f32, {24}, "norm"};
  TestTensor scalar{DType::f64, Shape{}, "scalar"};
  TestTensor moment{DType::f32, {17, 24}, "moment"};
  TestTensor half{DType::bf16, {2, 3, 5, 7}, "half"};
  TestTensor binary16{DType::f16, {3, 2}, "binary16"};

  std::vector<StateTensors> state() const {
    return {{"weight",
             {whole("embedding", embedding.tensor()), whole("final_norm", norm.tensor()),
              whole("scalar", scalar.tensor()), whole("half", half.tensor()), whole("binary16", binary16.tensor())}},
            {"m", {whole("embedding", moment.tensor())}}};
  }
};

std::string error_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    CHECK(error.status() == Status::input);
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("a checkpoint gives back what was saved") {
  const TestFolder folder;
  const Model model;
  const auto path = save_checkpoint(folder.path(), some_info(120), model.state());
  CHECK(path.filename() == "step_00000120");
  Checkpoint checkpoint = Checkpoint::open(path);
  const CheckpointInfo& info = checkpoint.info();
  CHECK(info.step == 120);
  CHECK(info.model == some_info(0).model);
  CHECK(info.config == some_info(0).config);
  CHECK(info.data_position == some_info(0).data_position);
  CHECK(info.seed == ~std::uint64_t{0});
  CHECK(info.tokenizer_digest == "abc");
  CHECK(info.origin == some_info(0).origin);
  CHECK(info.versions.at("onednn") == "3.2");
  for (const char* program : {"dropcycle", "hdf5", "compiler"}) CHECK(!info.versions.at(program).empty());
  for (const StateTensors& kind : model.state()) {
    for (const ShardedTensor& saved : kind.tensors) {
      TestTensor copy(saved.local.dtype, saved.global_shape, "something else");
      checkpoint.read(kind.kind, whole(saved.name, copy.tensor()));
      CHECK(std::memcmp(copy.tensor().data, saved.local.data, static_cast<std::size_t>(saved.local.bytes())) == 0);
    }
  }
  CHECK(checkpoint.find("m", "final_norm") == nullptr);
  CHECK(checkpoint.digest("weight") != checkpoint.digest("m"));
  std::uint64_t last = 0;
  checkpoint.verify([&](std::uint64_t done, std::uint64_t all) {
    CHECK(all == checkpoint.data_bytes());
    last = done;
  });
  CHECK(last == checkpoint.data_bytes());
}

TEST_CASE("HDF5 itself reads the same numbers, bfloat16 too") {
  const TestFolder folder;
  const Model model;
  const auto path = save_checkpoint(folder.path(), some_info(1), model.state());
  const hid_t file = H5Fopen((path / "rank_00000.h5").c_str(), H5F_ACC_RDONLY, H5P_DEFAULT);
  REQUIRE(file >= 0);
  for (const StateTensors& kind : model.state()) {
    for (const ShardedTensor& saved : kind.tensors) {
      const hid_t dataset = H5Dopen2(file, (kind.kind + "/" + saved.name).c_str(), H5P_DEFAULT);
      REQUIRE(dataset >= 0);
      const auto count = static_cast<std::size_t>(saved.local.elements());
      std::vector<double> numbers(count), expected(count);
      REQUIRE(H5Dread(dataset, H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL, H5P_DEFAULT, numbers.data()) >= 0);
      convert(saved.local.data, saved.local.dtype, expected.data(), DType::f64, saved.local.elements());
      CHECK(numbers == expected);
      H5Dclose(dataset);
    }
  }
  const hid_t dataset = H5Dopen2(file, "weight/half", H5P_DEFAULT);
  const hid_t attribute = H5Aopen(dataset, "global_shape", H5P_DEFAULT);
  std::int64_t shape[4] = {};
  CHECK(H5Aread(attribute, H5T_NATIVE_INT64, shape) >= 0);
  CHECK(shape[3] == 7);
  H5Aclose(attribute);
  H5Dclose(dataset);
  CHECK(H5Fclose(file) >= 0);
}

TEST_CASE("reading converts between element types, rounding once") {
  const TestFolder folder;
  const Model model;
  Checkpoint checkpoint = Checkpoint::open(save_checkpoint(folder.path(), some_info(1), model.state()));
  const auto* saved = model.embedding.tensor().as<float>();
  TestTensor half(DType::bf16, {17, 24}), wide(DType::f64, {17, 24});
  checkpoint.read("weight", whole("embedding", half.tensor()));
  checkpoint.read("weight", whole("embedding", wide.tensor()));
  int wrong = 0;
  for (std::int64_t i = 0; i < 17 * 24; ++i) {
    wrong += half.tensor().as<BF16>()[i].bits != BF16(saved[i]).bits;
    wrong += wide.tensor().as<double>()[i] != static_cast<double>(saved[i]);
  }
  CHECK(wrong == 0);
  TestTensor narrow(DType::f32, {2, 3, 5, 7});
  checkpoint.read("weight", whole("half", narrow.tensor()));
  CHECK(narrow.tensor().as<float>()[209] == static_cast<float>(model.half.tensor().as<BF16>()[209]));
}

TEST_CASE("a tensor that isn't there or has another shape is refused by name") {
  const TestFolder folder;
  const Model model;
  Checkpoint checkpoint = Checkpoint::open(save_checkpoint(folder.path(), some_info(1), model.state()));
  const TestTensor other(DType::f32, {17, 25});
  const std::string missing = error_of([&] { checkpoint.read("v", whole("embedding", other.tensor())); });
  CHECK(missing.find("has no v of embedding") != std::string::npos);
  const std::string unfit = error_of([&] { checkpoint.read("weight", whole("embedding", other.tensor())); });
  CHECK(unfit.find("[17, 24], but the model's is [17, 25]") != std::string::npos);
}

TEST_CASE("every changed byte and every cut is detected") {
  const TestFolder folder;
  const Model model;
  const auto path = save_checkpoint(folder.path(), some_info(1), model.state());
  for (const char* name : {"rank_00000.h5", "manifest.json"}) {
    const auto file = path / name;
    const std::string content = read_file(file);
    const int descriptor = ::open(file.c_str(), O_RDWR);
    REQUIRE(descriptor >= 0);
    int missed = 0;
    const std::size_t stride = content.size() > 20000 ? 3 : 1;
    for (std::size_t i = 0; i < content.size(); i += stride) {
      const char changed = static_cast<char>(content[i] ^ (1 << (i % 8)));
      REQUIRE(::pwrite(descriptor, &changed, 1, static_cast<off_t>(i)) == 1);
      missed += error_of([&] { Checkpoint::open(path).verify(); }).find(name) == std::string::npos;
      REQUIRE(::pwrite(descriptor, &content[i], 1, static_cast<off_t>(i)) == 1);
    }
    CHECK_MESSAGE(missed == 0, name);
    for (const std::size_t size : {content.size() - 1, content.size() / 2, std::size_t{0}}) {
      REQUIRE(::ftruncate(descriptor, static_cast<off_t>(size)) == 0);
      CHECK(error_of([&] { Checkpoint::open(path); }).find(name) != std::string::npos);
    }
    REQUIRE(::ftruncate(descriptor, 0) == 0);
    REQUIRE(::pwrite(descriptor, content.data(), content.size(), 0) == static_cast<ssize_t>(content.size()));
    ::close(descriptor);
    Checkpoint::open(path).verify();
    std::filesystem::rename(file, folder.path() / "away");
    CHECK(error_of([&] { Checkpoint::open(path); }).find(name) != std::string::npos);
    std::filesystem::rename(folder.path() / "away", file);
  }
}

TEST_CASE("damage is named with parameter, file, dataset and byte range, also when a part is read") {
  const TestFolder folder;
  const Model model;
  const auto path = save_checkpoint(folder.path(), some_info(1), model.state());
  Checkpoint whole_one = Checkpoint::open(path);
  const SliceEntry slice = whole_one.find("weight", "embedding")->slices[0];
  const int descriptor = ::open((path / "rank_00000.h5").c_str(), O_RDWR);
  const char changed = 77;
  REQUIRE(::pwrite(descriptor, &changed, 1, static_cast<off_t>(slice.byte_offset + 17 * 24 * 4 - 1)) == 1);
  ::close(descriptor);
  Checkpoint checkpoint = Checkpoint::open(path);
  TestTensor row(DType::f32, {1, 24});
  const std::string message = error_of([&] {
    checkpoint.read("weight", {"embedding", {17, 24}, {0, 0}, row.tensor(), true});
  });
  CHECK(message.find("rank_00000.h5: damaged: weight embedding, dataset /weight/embedding, bytes " +
                     std::to_string(slice.byte_offset) + " to " + std::to_string(slice.byte_offset + 17 * 24 * 4)) !=
        std::string::npos);
  TestTensor norm(DType::f32, {24});
  checkpoint.read("weight", whole("final_norm", norm.tensor()));
  CHECK(norm == model.norm);
}

TEST_CASE("a manifest with a seal but with lies in it is refused") {
  const TestFolder folder;
  const Model model;
  const auto path = save_checkpoint(folder.path(), some_info(1), model.state());
  const std::string text = read_file(path / "manifest.json");
  const std::string body = text.substr(0, text.rfind(",\n \"digest\"")) + "\n}";
  const auto lie = [&](const std::string& from, const std::string& to) {
    std::string changed = body;
    const std::size_t place = changed.find(from);
    REQUIRE(place != std::string::npos);
    changed.replace(place, from.size(), to);
    write_file(path / "manifest.json", seal(changed));
    return error_of([&] { Checkpoint::open(path); });
  };
  CHECK(lie("rank_00000.h5", "../../etc/passwd").find("file name") != std::string::npos);
  CHECK(lie("\"format_version\": 1", "\"format_version\": 2").find("format version 2") != std::string::npos);
  CHECK(lie("\"f32\"", "\"f17\"").find("f17") != std::string::npos);
  CHECK(lie("\"file\": 0", "\"file\": 1").find("file number 1") != std::string::npos);
  CHECK(!lie("\"byte_offset\": ", "\"byte_offset\": 1844674407370955").empty());
  CHECK(!lie("   17,\n", "   4611686018427387904,\n").empty());
  CHECK(!lie("\"parameters\": [", "\"parameters\": [ 3, ").empty());
  CHECK(!lie("\"step\": 1", "\"step\": \"one\"").empty());
  write_file(path / "manifest.json", seal(body));
  CHECK(error_of([&] { Checkpoint::open(path); }).empty());
}

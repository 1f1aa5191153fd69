#include "dropcycle/data/dataset.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "data_fixture.hpp"
#include "dropcycle/core/random.hpp"
#include "dropcycle/data/blend.hpp"

using namespace dropcycle;
using namespace dropcycle::testing;

namespace {

struct Rows {
  std::vector<std::int32_t> tokens, targets, positions, first_key;
  explicit Rows(std::size_t length) : tokens(length), targets(length), positions(length), first_key(length) {}
  Sample sample() { return {tokens, targets, positions, first_key}; }
};

// Documents of odd sizes (empty and single-token ones too) whose tokens count up from `first`.
Documents counting(std::int32_t first, std::size_t documents) {
  Documents made;
  for (std::size_t d = 0; d < documents; ++d) {
    std::vector<std::int32_t> document(d * 5 % 7);
    for (auto& token : document) token = first++;
    made.push_back(document);
  }
  return made;
}

std::vector<std::int32_t> flat(const Documents& documents) {
  std::vector<std::int32_t> tokens;
  for (const auto& document : documents) tokens.insert(tokens.end(), document.begin(), document.end());
  return tokens;
}

// Two sources; b has two shards, the second begins within a window.
DataConfig two_sources(const Folder& folder, std::int64_t length) {
  write_shard(folder / "a.h5", counting(0, 40));
  write_shard(folder / "b-0.h5", counting(200, 23));
  write_shard(folder / "b-1.h5", counting(300, 30));
  DataConfig config;
  config.sequence_length = length;
  config.train = {{"a", {folder / "a.h5"}, 0.7, 0}, {"b", {folder / "b-*.h5"}, 0.3, 0}};
  return config;
}

}  // namespace

TEST_CASE("a blend's counts are those of its picks, and stay within one per source of their shares") {
  const std::vector<std::vector<double>> mixtures = {{1}, {0.45, 0.45, 0.08, 0.01, 0.01}, {1, 0, 2}, {0, 3}, {1e-9, 1}};
  for (const auto& weights : mixtures) {
    for (const std::uint64_t seed : {1ULL, 99ULL}) {
      const Blend blend(weights, seed);
      double sum = 0;
      for (const double weight : weights) sum += weight;
      std::vector<std::uint64_t> counts(weights.size(), 0);
      for (std::uint64_t i = 0; i < 5000; ++i) {
        const auto closed = blend.counts(i);
        REQUIRE(closed == counts);
        const Blend::Pick pick = blend.at(i);
        REQUIRE(pick.index == counts[pick.source]);
        ++counts[pick.source];
        for (std::size_t s = 0; s < weights.size(); ++s) {
          const double share = weights[s] / sum * static_cast<double>(i + 1);
          REQUIRE(std::abs(static_cast<double>(counts[s]) - share) <= static_cast<double>(weights.size()));
        }
      }
    }
  }
  const std::vector<double> huge = {0.3, 0.7};
  const auto counts = Blend(huge, 1).counts(1000000000000000ULL);
  CHECK(counts[0] + counts[1] == 1000000000000000ULL);
  CHECK(std::abs(static_cast<double>(counts[0]) - 3e14) <= 2);
}

TEST_CASE("weights that can't be blended are refused") {
  const std::vector<std::vector<double>> bad = {{}, {0, 0}, {1, -1}, {1, std::nan("")}, {INFINITY}};
  for (const auto& weights : bad) error_of(Status::usage, [&] { Blend blend(weights, 1); });
}

TEST_CASE("each pass over a source visits every window once, in another order each time") {
  const Folder folder;
  DataConfig config = two_sources(folder, 4);
  config.train.resize(1);
  const Dataset dataset(config, 1000);
  const std::uint64_t windows = (flat(counting(0, 40)).size() - 1) / 4;
  std::vector<std::vector<std::uint64_t>> orders(2);
  for (std::uint64_t i = 0; i < 2 * windows; ++i) {
    const SampleOrigin origin = dataset.origin(i);
    CHECK(origin.epoch == i / windows);
    orders[i / windows].push_back(origin.window);
  }
  CHECK(orders[0] != orders[1]);
  for (auto& order : orders) {
    std::sort(order.begin(), order.end());
    for (std::uint64_t w = 0; w < windows; ++w) CHECK(order[w] == w);
  }
}

TEST_CASE("samples are windows of the concatenated shards, a pure function of seed and index") {
  const Folder folder;
  const DataConfig config = two_sources(folder, 7);
  const Dataset dataset(config, 1000), again(config, 1000);
  DataConfig other_seed = config;
  other_seed.seed = 2;
  const Dataset other(other_seed, 1000);
  auto b = flat(counting(200, 23));
  const auto b1 = flat(counting(300, 30));
  b.insert(b.end(), b1.begin(), b1.end());
  const std::vector<std::vector<std::int32_t>> sources = {flat(counting(0, 40)), b};
  std::size_t differing = 0;
  for (std::uint64_t i = 0; i < 200; ++i) {
    Rows rows(7), same(7), different(7);
    dataset.read(i, rows.sample());
    again.read(199 - (199 - i), same.sample());
    other.read(i, different.sample());
    REQUIRE(rows.tokens == same.tokens);
    differing += rows.tokens != different.tokens ? 1 : 0;
    const SampleOrigin origin = dataset.origin(i);
    for (std::size_t s = 0; s < 7; ++s) {
      REQUIRE(rows.tokens[s] == sources[origin.source][origin.window * 7 + s]);
      REQUIRE(rows.targets[s] == sources[origin.source][origin.window * 7 + s + 1]);
      REQUIRE(rows.positions[s] == static_cast<std::int32_t>(s));
      REQUIRE(rows.first_key[s] == 0);
    }
  }
  CHECK(differing > 150);
  CHECK(contains(dataset.describe(3), "source "));
}

TEST_CASE("positions, keys and targets restart at document ends") {
  const Folder folder;
  write_shard(folder / "a.h5", {{1, 2, 3}, {}, {4}, {5, 6, 7, 8, 9}});
  write_shard(folder / "b.h5", {{}, {10, 11}, {12, 13}});
  DataConfig config;
  config.sequence_length = 6;
  config.reset_at_document_end = true;
  const ValidationSet set({"v", {folder / "a.h5", folder / "b.h5"}, 0, 0}, config, 1000);
  REQUIRE(set.windows() == 2);
  Rows rows(6);
  CHECK(set.read(0, rows.sample()) == 4);
  CHECK(rows.tokens == std::vector<std::int32_t>{1, 2, 3, 4, 5, 6});
  CHECK(rows.targets == std::vector<std::int32_t>{2, 3, -1, -1, 6, 7});
  CHECK(rows.positions == std::vector<std::int32_t>{0, 1, 2, 0, 0, 1});
  CHECK(rows.first_key == std::vector<std::int32_t>{0, 0, 0, 3, 4, 4});
  CHECK(set.read(1, rows.sample()) == 4);  // the second shard begins at place 3
  CHECK(rows.tokens == std::vector<std::int32_t>{7, 8, 9, 10, 11, 12});
  CHECK(rows.targets == std::vector<std::int32_t>{8, 9, -1, 11, -1, 13});
  CHECK(rows.positions == std::vector<std::int32_t>{0, 1, 2, 0, 1, 0});
  CHECK(rows.first_key == std::vector<std::int32_t>{0, 0, 0, 3, 3, 5});
}

TEST_CASE("a document that starts just after a window masks its last target") {
  const Folder folder;
  write_shard(folder / "a.h5", {{1, 2, 3, 4}, {5, 6, 7, 8, 9}});
  DataConfig config;
  config.sequence_length = 4;
  config.reset_at_document_end = true;
  const ValidationSet set({"v", {folder / "a.h5"}, 0, 0}, config, 1000);
  Rows rows(4);
  CHECK(set.read(0, rows.sample()) == 3);
  CHECK(rows.targets == std::vector<std::int32_t>{2, 3, 4, -1});
}

TEST_CASE("validation predicts every token but the first exactly once") {
  const Folder folder;
  for (const std::size_t count : {2, 3, 8, 9, 10, 100}) {
    for (const std::int64_t length : {1, 3, 8, 200}) {
      CAPTURE(count);
      CAPTURE(length);
      std::vector<std::int32_t> document(count);
      for (std::size_t i = 0; i < count; ++i) document[i] = static_cast<std::int32_t>(i);
      write_shard(folder / "v.h5", {document});
      DataConfig config;
      config.sequence_length = length;
      const ValidationSet set({"v", {folder / "v.h5"}, 0, 0}, config, 1000);
      std::multiset<std::int32_t> predicted;
      std::int64_t counted = 0;
      for (std::uint64_t w = 0; w < set.windows(); ++w) {
        Rows rows(static_cast<std::size_t>(length));
        counted += set.read(w, rows.sample());
        for (std::size_t s = 0; s < rows.targets.size(); ++s) {
          if (rows.targets[s] < 0) continue;
          predicted.insert(rows.targets[s]);
          CHECK(rows.targets[s] == rows.tokens[s] + 1);
        }
      }
      CHECK(counted == static_cast<std::int64_t>(count) - 1);
      CHECK(predicted == std::multiset<std::int32_t>(document.begin() + 1, document.end()));
    }
  }
}

TEST_CASE("resuming with the same mixture is the uninterrupted run") {
  const Folder folder;
  const DataConfig config = two_sources(folder, 5);
  const Dataset whole(config, 1000);
  const DataState saved = DataState::from_json(whole.state(37).to_json());
  const Dataset resumed(config, 1000, "", &saved);
  CHECK(resumed.first_sample() == 37);
  for (std::uint64_t i = 37; i < 150; ++i) {
    Rows expected(5), got(5);
    whole.read(i, expected.sample());
    resumed.read(i, got.sample());
    REQUIRE(expected.tokens == got.tokens);
  }
  CHECK(resumed.counters(100)[1].samples == whole.counters(100)[1].samples);
}

TEST_CASE("resuming with another mixture goes on where each source stood") {
  const Folder folder;
  DataConfig config = two_sources(folder, 5);
  const Dataset before(config, 1000);
  const DataState saved = before.state(41);
  const auto stood = before.counters(41);
  CHECK(stood[0].samples + stood[1].samples == 41);
  CHECK(stood[0].tokens == stood[0].samples * 5);
  write_shard(folder / "c.h5", counting(500, 40));
  config.train = {{"c", {folder / "c.h5"}, 0.5, 0}, {"b", {folder / "b-*.h5"}, 0.5, 0}};
  const Dataset after(config, 1000, "", &saved);
  CHECK(after.first_sample() == 41);
  const auto counters = after.counters(41);
  CHECK(counters[0].samples == 0);
  CHECK(counters[1].samples == stood[1].samples);
  // The first sample of b is the one that the old mixture would have drawn next from b.
  std::uint64_t next_new = 41, next_old = 41;
  while (after.origin(next_new).source != 1) ++next_new;
  while (before.origin(next_old).source != 1) ++next_old;
  CHECK(after.origin(next_new).window == before.origin(next_old).window);
  const DataState again = after.state(60);
  const Dataset third(config, 1000, "", &again);
  CHECK(third.origin(70).window == after.origin(70).window);
  CHECK(third.origin(70).source == after.origin(70).source);
}

TEST_CASE("a source whose content changed is refused on resume") {
  const Folder folder;
  const DataConfig config = two_sources(folder, 5);
  const DataState saved = Dataset(config, 1000).state(10);
  write_shard(folder / "b-1.h5", counting(301, 30));
  CHECK(contains(error_of(Status::input, [&] { Dataset dataset(config, 1000, "", &saved); }), "source b"));
}

TEST_CASE("shards that don't fit are refused in one line") {
  const Folder folder;
  DataConfig config = two_sources(folder, 5);
  const std::string vocabulary = error_of(Status::input, [&] { Dataset dataset(config, 999); });
  CHECK(contains(vocabulary, "a.h5"));
  CHECK(contains(vocabulary, "999"));
  CHECK(contains(error_of(Status::input, [&] { Dataset dataset(config, 1000, "tokenizer-b"); }), "tokenizer-b"));
  write_shard(folder / "b-1.h5", counting(300, 30), 1000, "tokenizer-b");
  CHECK(contains(error_of(Status::input, [&] { Dataset dataset(config, 1000); }), "b-1.h5"));
  config.train[1].shards = {folder / "missing.h5"};
  CHECK(contains(error_of(Status::input, [&] { Dataset dataset(config, 1000); }), "missing.h5"));
  config.train.resize(1);
  config.sequence_length = 5000;
  CHECK(contains(error_of(Status::input, [&] { Dataset dataset(config, 1000); }), "sequence_length"));
  config.train.clear();
  error_of(Status::usage, [&] { Dataset dataset(config, 1000); });
}

TEST_CASE("token counts and sizes give the shares too, but not mixed with weights") {
  const Folder folder;
  DataConfig config = two_sources(folder, 5);
  config.train[0].weight = config.train[1].weight = 0;
  config.train[0].tokens = 3000;
  config.train[1].tokens = 1000;
  const auto counted = Dataset(config, 1000).counters(400);
  CHECK(std::abs(static_cast<double>(counted[0].samples) - 300) <= 2);
  CHECK(counted[0].passes > 1);
  config.train[0].weight = 1;
  config.train[0].tokens = 0;
  error_of(Status::usage, [&] { Dataset dataset(config, 1000); });
  config.train[0].weight = 0;
  config.train[1].tokens = 0;
  const double a = static_cast<double>(flat(counting(0, 40)).size());
  const double b = static_cast<double>(flat(counting(0, 23)).size() + flat(counting(0, 30)).size());
  const auto sized = Dataset(config, 1000).counters(1000);
  CHECK(std::abs(static_cast<double>(sized[0].samples) - 1000 * a / (a + b)) <= 2);
}

TEST_CASE("the loaders of any layout see the same steps") {
  const Folder folder;
  const DataConfig config = two_sources(folder, 5);
  const Dataset dataset(config, 1000);
  constexpr std::int64_t kGlobal = 12;
  for (const std::int64_t ranks : {1, 2, 3}) {
    for (const std::int64_t micro : {1, 2}) {
      std::map<std::uint64_t, std::vector<std::int32_t>> seen;
      for (std::int64_t rank = 0; rank < ranks; ++rank) {
        BatchLoader loader(dataset, {24, kGlobal, micro, rank, ranks, 2});
        REQUIRE(loader.micro_batches() == kGlobal / (ranks * micro));
        for (std::int64_t batch = 0; batch < 3 * loader.micro_batches(); ++batch) {
          const Batch& got = loader.next();
          for (std::int64_t b = 0; b < micro; ++b) {
            const auto begin = got.tokens.begin() + b * 5;
            const std::uint64_t index = got.first_sample + static_cast<std::uint64_t>(b);
            CHECK((index - 24) / kGlobal == static_cast<std::uint64_t>(batch / loader.micro_batches()));
            CHECK(seen.emplace(index, std::vector<std::int32_t>(begin, begin + 5)).second);
          }
        }
      }
      REQUIRE(seen.size() == 3 * kGlobal);
      for (const auto& [index, tokens] : seen) {
        Rows rows(5);
        dataset.read(index, rows.sample());
        CHECK(tokens == rows.tokens);
      }
      CHECK(seen.begin()->first == 24);
      CHECK(seen.rbegin()->first == 24 + 3 * kGlobal - 1);
    }
  }
  error_of(Status::usage, [&] { BatchLoader loader(dataset, {0, 12, 5, 0, 1, 1}); });
}

TEST_CASE("context ranks cut a sequence into a part from each end") {
  const std::int64_t sequence = 12;
  Batch whole{.first_sample = 7};
  for (std::int32_t i = 0; i < 24; ++i) {
    whole.tokens.push_back(i);
    whole.targets.push_back(100 + i);
    whole.positions.push_back(200 + i);
    whole.first_key.push_back(300 + i);
  }
  CHECK(cut_sequences(whole, sequence, 0, 1).tokens == whole.tokens);
  const std::vector<std::vector<std::int32_t>> places = {{0, 1, 10, 11}, {2, 3, 8, 9}, {4, 5, 6, 7}};
  for (int rank = 0; rank < 3; ++rank) {
    const Batch mine = cut_sequences(whole, sequence, rank, 3);
    CHECK(mine.first_sample == 7);
    REQUIRE(mine.tokens.size() == 8);
    for (std::size_t i = 0; i < 8; ++i) {
      const std::int32_t place = places[static_cast<std::size_t>(rank)][i % 4];
      const std::int32_t token = place + (i < 4 ? 0 : 12);
      CHECK(mine.places[i] == place);
      CHECK(mine.tokens[i] == token);
      CHECK(mine.targets[i] == 100 + token);
      CHECK(mine.positions[i] == 200 + token);
      CHECK(mine.first_key[i] == 300 + token);
    }
  }
  CHECK_THROWS_AS(cut_sequences(whole, sequence, 0, 4), Error);
}

TEST_CASE("a damaged block stops the loader with its message") {
  const Folder folder;
  write_shard(folder / "a.h5", {std::vector<std::int32_t>(5000, 0x155)});
  DataConfig config;
  config.sequence_length = 5;
  config.train = {{"a", {folder / "a.h5"}, 1, 0}};
  const Dataset dataset(config, 1000);
  const std::string bytes = read_file(folder / "a.h5");
  flip_byte(folder / "a.h5", bytes.find("\x55\x01\x55\x01") + 4000);
  BatchLoader loader(dataset, {0, 1, 1, 0, 1, 2});
  CHECK(contains(error_of(Status::input, [&] { loader.next(); }), "dataset tokens"));
}

// Collectives on 1 to 4 ranks: values against sums computed from every rank's input, which any rank can draw, and the
// adjoint identity ⟨Ax, y⟩ = ⟨x, Aᵀy⟩ in double.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

#include "dropcycle/parallel/communicator.hpp"
#include "on_device.hpp"
#include "world.hpp"

using namespace dropcycle;
using test::device;
using test::Lent;
using test::world_size;

namespace {

Groups all_ranks() { return Groups::over_mpi(Topology({}, world_size()), device()); }

// A pipeline of all ranks, which has channels on every device.
Groups all_stages() { return Groups::over_mpi(Topology({.pp = world_size()}, world_size()), device()); }

// A value in [-1, 1) that depends on every argument.
double value(int seed, int rank, std::int64_t index) {
  std::uint64_t word = 0x9e3779b97f4a7c15U * static_cast<std::uint64_t>(seed + 1) +
                       0xbf58476d1ce4e5b9U * static_cast<std::uint64_t>(rank + 1) + static_cast<std::uint64_t>(index);
  for (int i = 0; i < 3; ++i) word = (word ^ (word >> 29)) * 0x94d049bb133111ebU;
  return static_cast<double>(word >> 11) * 0x1p-52 - 1.0;
}

template <class T = double>
std::vector<T> draw(int seed, int rank, std::int64_t elements) {
  std::vector<T> result(static_cast<std::size_t>(elements));
  for (std::int64_t i = 0; i < elements; ++i) {
    result[static_cast<std::size_t>(i)] = static_cast<T>(1000.0 * value(seed, rank, i));
  }
  return result;
}

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  REQUIRE(a.size() == b.size());
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// Σ over ranks of the local number.
double sum_over_ranks(double local) {
  MPI_Allreduce(MPI_IN_PLACE, &local, 1, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
  return local;
}

void check_adjoint(double left, double right) {
  CHECK(left != 0);  // the identity of two zeros says nothing
  CHECK((std::abs(left - right) <= 1e-12 * (std::abs(left) + std::abs(right))));
}

// Rows that rank `from` sends to rank `to`: unlike in both directions, with empty pairs.
std::int64_t rows_between(int from, int to) { return (3 * from + 5 * to + from * to) % 4 == 1 ? 0 : 1 + 2 * from + to; }

struct Exchange {
  std::vector<std::int64_t> send, recv;
  std::int64_t sent = 0, received = 0;
  Exchange(int rank, int size) {
    for (int r = 0; r < size; ++r) {
      send.push_back(rows_between(rank, r));
      recv.push_back(rows_between(r, rank));
      sent += send.back();
      received += recv.back();
    }
  }
};

template <class T>
void check_sums(Communicator& group) {
  for (const std::int64_t elements : {0, 1, 2, 3, 7, 1000, 5000, 100003}) {
    std::vector<T> x = draw<T>(1, group.rank(), elements), y = x;
    group.all_reduce(Lent(x, Shape{elements}));
    {
      const Lent lent(y);
      const auto request = group.start_all_reduce(lent);
      while (!request->test()) {
      }
    }
    std::vector<T> lowest = x, highest = x;
    MPI_Allreduce(MPI_IN_PLACE, lowest.data(), static_cast<int>(elements * sizeof(T)), MPI_BYTE, MPI_BAND,
                  MPI_COMM_WORLD);
    MPI_Allreduce(MPI_IN_PLACE, highest.data(), static_cast<int>(elements * sizeof(T)), MPI_BYTE, MPI_BOR,
                  MPI_COMM_WORLD);
    CHECK((elements == 0 || std::memcmp(lowest.data(), highest.data(), x.size() * sizeof(T)) == 0));  // the same bits
    double worst = 0, worst_started = 0;
    for (std::int64_t i = 0; i < elements; ++i) {
      double expected = 0;
      for (int r = 0; r < group.size(); ++r) expected += static_cast<double>(static_cast<T>(1000.0 * value(1, r, i)));
      const auto at = static_cast<std::size_t>(i);
      worst = std::max(worst, std::abs(static_cast<double>(x[at]) - expected));
      worst_started = std::max(worst_started, std::abs(static_cast<double>(y[at]) - expected));
    }
    const double tolerance = std::is_same_v<T, std::int32_t> ? 0.0 : std::is_same_v<T, float> ? 1e-3 : 1e-11;
    CHECK((worst <= tolerance));
    CHECK((worst_started <= tolerance));
  }
}

}  // namespace

TEST_CASE("all_reduce sums in f64, f32 and i32, with the same bits on every rank") {
  Groups groups = all_ranks();
  check_sums<double>(groups.world());
  check_sums<float>(groups.world());
  check_sums<std::int32_t>(groups.world());
}

TEST_CASE("all_reduce and identity are adjoint") {
  Groups groups = all_ranks();
  Communicator& group = groups.world();
  std::vector<double> x = draw(1, group.rank(), 101), ax = x;
  const std::vector<double> y = draw(2, 0, 101);  // replicated, as Ax is
  group.all_reduce(Lent(ax, Shape{101}));
  check_adjoint(dot(ax, y), sum_over_ranks(dot(x, y)));
}

TEST_CASE("all_gather and reduce_scatter are adjoint") {
  Groups groups = all_ranks();
  Communicator& group = groups.world();
  for (const std::int64_t rows : {1, 3, 500}) {
    const std::int64_t n = rows * 7, all = n * group.size();
    // A = all_gather. Each rank's gathered copy has its own y, so the adjoint sums them.
    std::vector<double> x = draw(3, group.rank(), n), ax(static_cast<std::size_t>(all));
    std::vector<double> y = draw(4, group.rank(), all), aty(static_cast<std::size_t>(n));
    group.all_gather(Lent(x, Shape{rows, 7}), Lent(ax, Shape{rows * group.size(), 7}));
    group.reduce_scatter(Lent(y, Shape{rows * group.size(), 7}), Lent(aty, Shape{rows, 7}));
    check_adjoint(sum_over_ranks(dot(ax, y)), sum_over_ranks(dot(x, aty)));
    for (int r = 0; r < group.size(); ++r) {
      const std::vector<double> part = draw(3, r, n);
      CHECK(std::memcmp(part.data(), ax.data() + r * n, part.size() * sizeof(double)) == 0);
    }
  }
}

TEST_CASE("started sums and gathers of pieces: rank order, untouched neighbours, any order of ending") {
  Groups groups = all_ranks();
  Communicator& group = groups.world();
  const int ranks = group.size();
  for (const std::int64_t n : {0, 1, 2, 3, 7, 1000, 100003}) {
    const Piece own = piece_of(n, group.rank(), ranks);
    const auto inside = [&](std::int64_t i) { return i >= own.first && i < own.first + own.count; };
    std::vector<float> scattered = draw<float>(1, group.rank(), n), gathered = scattered, reduced = scattered;
    {
      const Lent scatters(scattered), gathers(gathered);
      const auto first = group.start_reduce_scatter(scatters);
      const auto second = group.start_all_gather(gathers);
      group.start_all_reduce(Lent(reduced))->wait();
      second->wait();
      while (!first->test()) {
      }
    }
    std::int64_t wrong = 0;
    std::vector<std::vector<float>> all;
    for (int r = 0; r < ranks; ++r) all.push_back(draw<float>(1, r, n));
    for (int r = 0; r < ranks; ++r) {
      const Piece piece = piece_of(n, r, ranks);
      for (std::int64_t i = piece.first; i < piece.first + piece.count; ++i) {
        const auto at = static_cast<std::size_t>(i);
        float sum = all[0][at];
        for (int other = 1; other < ranks; ++other) sum += all[static_cast<std::size_t>(other)][at];
        const float before = all[static_cast<std::size_t>(group.rank())][at];
        wrong += gathered[at] != all[static_cast<std::size_t>(r)][at];
        wrong += inside(i) ? scattered[at] != reduced[at] : scattered[at] != before;  // the same bits by either way
        wrong += device().is_host() ? reduced[at] != sum : !(std::abs(reduced[at] - sum) <= 1e-3F);
      }
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("started all_gather and reduce_scatter are adjoint") {
  Groups groups = all_ranks();
  Communicator& group = groups.world();
  const std::int64_t n = 1001;
  const Piece own = piece_of(n, group.rank(), group.size());
  const auto part = [&](const std::vector<double>& x) {
    return std::vector<double>(x.begin() + own.first, x.begin() + own.first + own.count);
  };
  const std::vector<double> x = draw(3, group.rank(), n), y = draw(4, group.rank(), n);
  std::vector<double> ax = x, aty = y;
  group.start_all_gather(Lent(ax, Shape{n}))->wait();
  group.start_reduce_scatter(Lent(aty, Shape{n}))->wait();
  check_adjoint(sum_over_ranks(dot(ax, y)), sum_over_ranks(dot(part(x), part(aty))));
}

TEST_CASE("bytes are counted by the ring's volumes") {
  Groups groups = all_ranks();
  Communicator& group = groups.world();
  const double n = group.size(), share = (n - 1) / n;
  const auto ranks = static_cast<std::size_t>(group.size());
  std::vector<float> x(12 * ranks), out(12 * ranks);
  const Lent whole(x, Shape{12 * group.size()}), part(out, Shape{12});
  const auto counted = [&](Collective kind, double bytes, auto call) {
    CAPTURE(std::string(name(kind)));
    Traffic before = group.traffic();
    call();
    Traffic sent = group.traffic();
    sent -= before;
    CHECK(sent[kind] == bytes);
    CHECK(sent.total() == bytes);
  };
  const double bytes = 48 * n;
  counted(Collective::all_reduce, 2 * share * bytes, [&] { group.all_reduce(whole); });
  counted(Collective::all_reduce, 2 * share * bytes, [&] { group.start_all_reduce(whole)->wait(); });
  counted(Collective::reduce_scatter, share * bytes, [&] { group.reduce_scatter(whole, part); });
  counted(Collective::reduce_scatter, share * bytes, [&] { group.start_reduce_scatter(whole)->wait(); });
  counted(Collective::all_gather, share * bytes, [&] { group.all_gather(part, whole); });
  counted(Collective::all_gather, share * bytes, [&] { group.start_all_gather(whole)->wait(); });
  const std::vector<std::int64_t> rows(ranks, 2);
  const Lent from(x, Shape{4 * group.size(), 3}), to(out, Shape{4 * group.size(), 3});
  counted(Collective::all_to_all, 24 * (n - 1), [&] { group.all_to_all(from, rows, to, rows); });
  double number = 1;
  counted(Collective::all_reduce, 0, [&] { group.sum({&number, 1}); });
  CHECK(number == n);
}

TEST_CASE("all_gather and reduce_scatter of unequal counts are adjoint, with a rank that has no row") {
  Groups groups = all_ranks();
  Communicator& group = groups.world();
  for (const std::int64_t scale : {1, 700}) {
    std::vector<std::int64_t> counts;
    for (int r = 0; r < group.size(); ++r) counts.push_back(r == 1 ? 0 : scale * (2 * r + 1));
    const std::int64_t rows = counts[static_cast<std::size_t>(group.rank())];
    const std::int64_t all = std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
    std::vector<double> x = draw(13, group.rank(), rows * 5), ax(static_cast<std::size_t>(all * 5));
    std::vector<double> y = draw(14, group.rank(), all * 5), spent = y, aty(static_cast<std::size_t>(rows * 5));
    group.all_gather(Lent(x, Shape{rows, 5}), counts, Lent(ax, Shape{all, 5}));
    group.reduce_scatter(Lent(spent, Shape{all, 5}), counts, Lent(aty, Shape{rows, 5}));
    check_adjoint(sum_over_ranks(dot(ax, y)), sum_over_ranks(dot(x, aty)));
    auto at = ax.begin();
    for (int r = 0; r < group.size(); ++r) {
      const std::vector<double> part = draw(13, r, counts[static_cast<std::size_t>(r)] * 5);
      CHECK(std::equal(part.begin(), part.end(), at));
      at += std::ssize(part);
    }
    // The sum runs in the order of the ranks.
    std::vector<double> sum = draw(14, 0, all * 5);
    for (int r = 1; r < group.size(); ++r) {
      const std::vector<double> other = draw(14, r, all * 5);
      for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += other[i];
    }
    const auto first = std::accumulate(counts.begin(), counts.begin() + group.rank(), std::int64_t{0}) * 5;
    CHECK(std::equal(aty.begin(), aty.end(), sum.begin() + first, [](double found, double expected) {
      return device().is_host() ? found == expected : std::abs(found - expected) <= 1e-11;
    }));
  }
}

TEST_CASE("all_to_all and its exchange of counts are adjoint, with empty pairs") {
  Groups groups = all_ranks();
  Communicator& group = groups.world();
  const Exchange e(group.rank(), group.size());
  std::vector<double> x = draw(5, group.rank(), e.sent * 5), ax(static_cast<std::size_t>(e.received * 5));
  std::vector<double> y = draw(6, group.rank(), e.received * 5), aty(static_cast<std::size_t>(e.sent * 5));
  group.all_to_all(Lent(x, Shape{e.sent, 5}), e.send, Lent(ax, Shape{e.received, 5}), e.recv);
  group.all_to_all(Lent(y, Shape{e.received, 5}), e.recv, Lent(aty, Shape{e.sent, 5}), e.send);
  check_adjoint(sum_over_ranks(dot(ax, y)), sum_over_ranks(dot(x, aty)));
  // And back again is the identity.
  std::vector<double> back(x.size());
  group.all_to_all(Lent(ax, Shape{e.received, 5}), e.recv, Lent(back, Shape{e.sent, 5}), e.send);
  CHECK(back == x);
}

TEST_CASE("started all_to_all: adjoint, several under way, any order of ending") {
  Groups groups = all_ranks();
  Communicator& group = groups.world();
  const Exchange e(group.rank(), group.size());
  for (const std::int64_t width : {5, 40000}) {
    std::vector<double> x = draw(15, group.rank(), e.sent * width), ax(static_cast<std::size_t>(e.received * width));
    std::vector<double> y = draw(16, group.rank(), e.received * width), aty(x.size()), z(ax.size());
    {
      const Lent xs(x, Shape{e.sent, width}), ys(y, Shape{e.received, width}), axs(ax, Shape{e.received, width}),
          atys(aty, Shape{e.sent, width}), zs(z, Shape{e.received, width});
      const auto first = group.start_all_to_all(xs, e.send, axs, e.recv);
      const auto second = group.start_all_to_all(ys, e.recv, atys, e.send);
      const auto third = group.start_all_to_all(xs, e.send, zs, e.recv);
      third->wait();
      while (!second->test()) {
      }
      first->wait();
      device().synchronize();
      CHECK(first->test());  // done stays done
    }
    check_adjoint(sum_over_ranks(dot(ax, y)), sum_over_ranks(dot(x, aty)));
    CHECK(z == ax);
    // Rank r's rows for this one begin after those for the ranks before.
    auto at = ax.begin();
    for (int r = 0; r < group.size(); ++r) {
      std::int64_t before = 0, all = 0;
      for (int to = 0; to < group.size(); ++to) {
        all += rows_between(r, to);
        if (to < group.rank()) before += rows_between(r, to);
      }
      const std::vector<double> sent = draw(15, r, all * width);
      const auto rows = rows_between(r, group.rank()) * width;
      CHECK(std::equal(at, at + rows, sent.begin() + before * width));
      at += rows;
    }
  }
}

TEST_CASE("all_to_all puts each rank's rows where they belong, in any type") {
  Groups groups = all_ranks();
  Communicator& group = groups.world();
  const Exchange e(group.rank(), group.size());
  const auto row_value = [](int from, int to, std::int64_t row, int column) {
    return static_cast<float>(from * 64 + to * 16 + (row % 8) * 2 + column);  // exact in bf16
  };
  std::vector<BF16> x;
  for (int to = 0; to < group.size(); ++to) {
    for (std::int64_t row = 0; row < rows_between(group.rank(), to); ++row) {
      for (int column = 0; column < 2; ++column) x.emplace_back(row_value(group.rank(), to, row, column));
    }
  }
  // Room for more rows than arrive: the rest isn't touched.
  std::vector<BF16> out(static_cast<std::size_t>((e.received + 3) * 2), BF16(-1.0F));
  group.all_to_all(Lent(x, Shape{e.sent, 2}), e.send, Lent(out, Shape{e.received + 3, 2}), e.recv);
  std::size_t at = 0, wrong = 0;
  for (int from = 0; from < group.size(); ++from) {
    for (std::int64_t row = 0; row < rows_between(from, group.rank()); ++row) {
      for (int column = 0; column < 2; ++column) {
        if (static_cast<float>(out[at++]) != row_value(from, group.rank(), row, column)) ++wrong;
      }
    }
  }
  for (; at < out.size(); ++at) {
    if (static_cast<float>(out[at]) != -1.0F) ++wrong;
  }
  CHECK(wrong == 0);
}

TEST_CASE("all_to_all of no rows at all") {
  Groups groups = all_ranks();
  Communicator& group = groups.world();
  const std::vector<std::int64_t> none(static_cast<std::size_t>(group.size()), 0);
  group.all_to_all(Tensor(static_cast<float*>(nullptr), Shape{0, 8}), none,
                   Tensor(static_cast<float*>(nullptr), Shape{0, 8}), none);
  group.barrier();
}

TEST_CASE("all_to_all_counts transposes the table of counts") {
  Groups groups = all_ranks();
  Communicator& group = groups.world();
  const std::int64_t n = 3;
  std::vector<std::int64_t> send, recv(static_cast<std::size_t>(group.size() * n));
  for (int to = 0; to < group.size(); ++to) {
    for (std::int64_t i = 0; i < n; ++i) send.push_back(100 * group.rank() + 10 * to + i);
  }
  group.all_to_all_counts(send, recv);
  for (int from = 0; from < group.size(); ++from) {
    for (std::int64_t i = 0; i < n; ++i) {
      CHECK(recv[static_cast<std::size_t>(from * n + i)] == 100 * from + 10 * group.rank() + i);
    }
  }
}

TEST_CASE("send and receive are adjoint, also large and both ways at once") {
  Groups groups = all_stages();
  Communicator& group = groups[GroupKind::pp];
  if (group.size() == 1) return;
  const int to = (group.rank() + 1) % group.size(), from = (group.rank() + group.size() - 1) % group.size();
  for (const std::int64_t n : {0, 1, 77, 3000000}) {
    // A sends round the ring, its adjoint back: every rank sends before it receives.
    std::vector<double> x = draw(7, group.rank(), n), ax(x.size()), y = draw(8, group.rank(), n), aty(x.size());
    {
      const Lent ahead(x), back(y);
      const auto sent = group.start_send(ahead, to, Channel::forward);
      const auto returned = group.start_send(back, from, Channel::backward);
      group.start_receive(Lent(aty), to, Channel::backward)->wait();
      group.start_receive(Lent(ax), from, Channel::forward)->wait();
      sent->wait();
      returned->wait();
    }
    CHECK(ax == draw(7, from, n));
    if (n > 0) check_adjoint(sum_over_ranks(dot(ax, y)), sum_over_ranks(dot(x, aty)));
  }
}

TEST_CASE("messages of a channel are matched in the order in which they were sent") {
  Groups groups = all_stages();
  Communicator& group = groups[GroupKind::pp];
  if (group.size() == 1) return;
  const int next = (group.rank() + 1) % group.size(), before = (group.rank() + group.size() - 1) % group.size();
  const auto is_forward = [](int i) { return i % 2 == 0; };
  const auto channel_of = [&](int i) { return is_forward(i) ? Channel::forward : Channel::backward; };
  std::vector<std::vector<std::int32_t>> values;
  for (int i = 0; i < 6; ++i) values.push_back(draw<std::int32_t>(20 + i, group.rank(), i * 40000));
  std::vector<std::unique_ptr<Lent<std::int32_t>>> sent;
  std::vector<std::unique_ptr<Request>> requests;
  for (int i = 0; i < 6; ++i) {
    sent.push_back(std::make_unique<Lent<std::int32_t>>(values[static_cast<std::size_t>(i)]));
    requests.push_back(group.start_send(*sent.back(), is_forward(i) ? next : before, channel_of(i)));
  }
  // The other channel's messages may be taken first.
  for (const int i : {1, 3, 5, 0, 2, 4}) {
    const int from = is_forward(i) ? before : next;
    std::vector<std::int32_t> out(values[static_cast<std::size_t>(i)].size());
    {
      const Lent lent(out);
      const auto request = group.start_receive(lent, from, channel_of(i));
      while (!request->test()) {
      }
    }
    CHECK(out == draw<std::int32_t>(20 + i, from, i * 40000));
  }
}

TEST_CASE("numbers of the host travel beside a channel's tensors, both ways at once") {
  Groups groups = all_stages();
  Communicator& group = groups[GroupKind::pp];
  if (group.size() == 1) return;
  const int to = (group.rank() + 1) % group.size(), from = (group.rank() + group.size() - 1) % group.size();
  for (const std::int64_t n : {1, 3, 20000}) {
    const std::vector<double> x = draw(31, group.rank(), n), y = draw(32, group.rank(), n);
    std::vector<double> ahead(x.size()), back(x.size()), tensor = draw(33, group.rank(), n), arrived(x.size());
    const auto sent = std::make_unique<Lent<double>>(tensor);
    auto received = std::make_unique<Lent<double>>(arrived);
    std::vector<std::unique_ptr<Request>> requests;
    requests.push_back(group.start_send(std::span(x), to, Channel::forward));
    requests.push_back(group.start_send(std::span(y), from, Channel::backward));
    requests.push_back(group.start_send(*sent, to, Channel::forward));
    requests.push_back(group.start_receive(*received, from, Channel::forward));
    requests.push_back(group.start_receive(std::span(back), to, Channel::backward));
    requests.push_back(group.start_receive(std::span(ahead), from, Channel::forward));
    for (const auto& request : requests) request->wait();
    received.reset();
    CHECK(ahead == draw(31, from, n));
    CHECK(back == draw(32, to, n));
    CHECK(arrived == draw(33, from, n));
  }
}

TEST_CASE("maximum, broadcast and texts") {
  Groups groups = all_ranks();
  Communicator& group = groups.world();
  double greatest[] = {static_cast<double>(group.rank()), -static_cast<double>(group.rank())};
  group.greatest(greatest);
  CHECK(greatest[0] == group.size() - 1);
  CHECK(greatest[1] == 0);

  const int root = group.size() - 1;
  std::string text = group.rank() == root ? "from the last" : "_____________";
  group.broadcast(text.data(), static_cast<std::int64_t>(text.size()), root);
  CHECK(text == "from the last");

  // The first rank's text is empty, the others' lengths differ.
  const std::vector<std::string> texts =
      group.all_gather_text(std::string(static_cast<std::size_t>(2 * group.rank()), 'x'));
  REQUIRE(static_cast<int>(texts.size()) == group.size());
  for (int r = 0; r < group.size(); ++r) {
    CHECK(texts[static_cast<std::size_t>(r)] == std::string(static_cast<std::size_t>(2 * r), 'x'));
  }
}

TEST_CASE("ranks that differ are refused with the first differing line and both values") {
  Groups groups = all_ranks();
  Communicator& group = groups.world();
  check_same_everywhere(group, "config", "seed = 1\nlr = 0.1\n");
  if (group.size() == 1) return;
  const bool odd = group.rank() == 1;
  const auto refusal = [&](const std::string& text) {
    try {
      check_same_everywhere(group, "config", text);
      return std::string();
    } catch (const Error& error) {
      CHECK(error.status() == Status::peer);
      return std::string(error.what());
    }
  };
  // The same line on every rank, whichever is the odd one.
  CHECK(refusal(odd ? "seed = 1\nlr = 0.2\n" : "seed = 1\nlr = 0.1\n") ==
        "the config of rank 1 differs from rank 0's in line 2: 'lr = 0.2' instead of 'lr = 0.1': start all ranks with "
        "the same one");
  CHECK(refusal(odd ? "seed = 1\n" : "seed = 1\nlr = 0.1\n") ==
        "the config of rank 1 differs from rank 0's in line 2: '(nothing)' instead of 'lr = 0.1': start all ranks with "
        "the same one");
  CHECK(
      refusal(odd ? "[a]\nseed = 1\n[b]\nx = 1\nseed = 2\n" : "[a]\nseed = 1\n[b]\nx = 1\nseed = 1\n") ==
      "the config of rank 1 differs from rank 0's in line 5 of [b]: 'seed = 2' instead of 'seed = 1': start all ranks "
      "with the same one");
  CHECK(refusal(odd ? "seed = 1\nlr = 0.1" : "seed = 1\nlr = 0.1\n").find("config of rank 1 differs") !=
        std::string::npos);
}

TEST_CASE("groups of every kind sum over exactly their members") {
  const int size = world_size();
  for (const Layout& layout : {Layout{}, Layout{.ep = size}, Layout{.pp = size}, Layout{.tp = size}, Layout{.cp = size},
                               Layout{.ep = size % 2 == 0 ? 2 : 1}, Layout{.tp = size % 2 == 0 ? 2 : 1}}) {
    Groups groups = Groups::over_mpi(Topology(layout, size), device());
    int rank = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    CHECK(groups.coordinates() == groups.topology().coordinates(rank));
    for (const GroupKind kind : kGroupKinds) {
      Communicator& group = groups[kind];
      const std::vector<int> members = groups.topology().members(kind, rank);
      CAPTURE(group.name());
      REQUIRE(group.size() == static_cast<int>(members.size()));
      CHECK(members[static_cast<std::size_t>(group.rank())] == rank);
      std::vector<std::int32_t> bit = {1 << rank};
      group.all_reduce(Lent(bit));
      std::int32_t expected = 0;
      for (const int member : members) expected += 1 << member;
      CHECK(bit[0] == expected);
    }
  }
}

TEST_CASE("a group of one without MPI copies") {
  Groups groups = Groups::single(device());
  for (const GroupKind kind : kGroupKinds) {
    Communicator& group = groups[kind];
    CHECK(group.size() == 1);
    CHECK(group.name() == name(kind));
    std::vector<float> x = {1, 2, 3, 4, 5, 6}, out(6);
    group.all_reduce(Lent(x, Shape{6}));
    group.start_all_reduce(Lent(x, Shape{6}))->wait();
    const std::int64_t rows[] = {2};
    group.all_to_all(Lent(x, Shape{3, 2}), rows, Lent(out, Shape{3, 2}), rows);
    CHECK(out == std::vector<float>{1, 2, 3, 4, 0, 0});
    group.all_gather(Lent(x, Shape{3, 2}), Lent(out, Shape{3, 2}));
    CHECK(out == x);
    const std::int64_t send[] = {4, 9};
    std::int64_t recv[] = {0, 0};
    group.all_to_all_counts(send, recv);
    CHECK(recv[1] == 9);
  }
}

TEST_CASE("misuse is refused before MPI sees it") {
  Groups groups = all_ranks();
  Communicator& group = groups.world();
  const auto ranks = static_cast<std::size_t>(group.size());
  std::vector<float> x(8 * ranks), out(8 * ranks);
  const std::int64_t rows = 8 * group.size();
  std::vector<std::int64_t> too_many(ranks, 9), negative(ranks, -1);
  CHECK_THROWS_AS(group.all_to_all(Lent(x, Shape{rows, 1}), too_many, Lent(out, Shape{rows, 1}), too_many), Error);
  CHECK_THROWS_AS(group.all_to_all(Lent(x, Shape{rows, 1}), negative, Lent(out, Shape{rows, 1}), negative), Error);
  CHECK_THROWS_AS(group.all_gather(Lent(x, Shape{rows}), Lent(out, Shape{rows - 1})), Error);
  CHECK_THROWS_AS(group.start_send(Lent(x, Shape{8}), group.rank(), Channel::forward), Error);
  CHECK_THROWS_AS(group.start_receive(Lent(x, Shape{8}), group.size(), Channel::forward), Error);
  if (group.size() > 1) {
    std::vector<BF16> halves(4);
    CHECK_THROWS_AS(group.all_reduce(Lent(halves, Shape{4})), Error);
  }
}

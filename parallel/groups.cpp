#include <fmt/format.h>
#include <mpi.h>

#include <algorithm>
#include <array>

#include "dropcycle/core/digest.hpp"
#include "dropcycle/parallel/communicator.hpp"
#include "mpi_communicator.hpp"
#include "nccl.hpp"

namespace dropcycle {

struct Groups::State {
  Topology topology;
  Coordinates coordinates;
  std::unique_ptr<NcclWorld> nccl;  // dies after the communicators that were split from it
  std::array<std::unique_ptr<Communicator>, kGroupKinds.size()> communicators;
};

Groups::Groups(std::unique_ptr<State> state) : state_(std::move(state)) {}
Groups::Groups(Groups&&) noexcept = default;
Groups& Groups::operator=(Groups&&) noexcept = default;
Groups::~Groups() = default;

const Topology& Groups::topology() const { return state_->topology; }
const Coordinates& Groups::coordinates() const { return state_->coordinates; }
Communicator& Groups::operator[](GroupKind kind) const {
  return *state_->communicators[static_cast<std::size_t>(kind)];
}

Groups Groups::single(Device& device) {
  const Topology topology({}, 1);
  auto state = std::make_unique<State>(State{topology, topology.coordinates(0), {}, {}});
  for (const GroupKind kind : kGroupKinds) {
    state->communicators[static_cast<std::size_t>(kind)] = local_communicator(name(kind), device);
  }
  return Groups(std::move(state));
}

Groups Groups::planned(const Topology& topology, int rank) {
  auto state = std::make_unique<State>(State{topology, topology.coordinates(rank), {}, {}});
  for (const GroupKind kind : kGroupKinds) {
    const std::vector<int> members = topology.members(kind, rank);
    const auto place = std::ranges::find(members, rank) - members.begin();
    state->communicators[static_cast<std::size_t>(kind)] =
        planned_communicator(name(kind), static_cast<int>(place), static_cast<int>(members.size()));
  }
  return Groups(std::move(state));
}

PerGroupKind<Traffic> Groups::traffic() const {
  PerGroupKind<Traffic> all;
  for (const GroupKind kind : kGroupKinds) all[kind] = (*this)[kind].traffic();
  return all;
}

Groups Groups::over_mpi(const Topology& topology, Device& device) {
  int rank = 0, size = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  require(size == topology.world_size(), "a topology of {} ranks on {}", topology.world_size(), size);
  auto state = std::make_unique<State>(State{topology, topology.coordinates(rank), {}, {}});
  for (const GroupKind kind : kGroupKinds) {
    auto& communicator = state->communicators[static_cast<std::size_t>(kind)];
    if (topology.group_size(kind) == 1) {
      communicator = local_communicator(name(kind), device);
      continue;
    }
    // Groups of one kind don't overlap: the lowest member tells them apart.
    const int color = topology.members(kind, rank).front();
    MPI_Comm comm = MPI_COMM_NULL;
    check_mpi(MPI_Comm_split(MPI_COMM_WORLD, color, rank, &comm), "world", rank, "creation of groups");
    communicator = mpi_communicator(name(kind), CommHandle(comm));
    if (device.is_host()) continue;
    if (kind == GroupKind::world) state->nccl = nccl_world(*communicator, device);
    communicator = state->nccl->split(std::move(communicator), color, kind == GroupKind::pp);
  }
  return Groups(std::move(state));
}

namespace {

std::vector<std::string_view> lines_of(std::string_view text) {
  std::vector<std::string_view> lines;
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    lines.push_back(text.substr(0, end));
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  }
  return lines;
}

}  // namespace

void check_same_everywhere(Communicator& communicator, std::string_view label, const std::string& text) {
  const std::vector<std::string> digests = communicator.all_gather_text(digest(text));
  if (std::ranges::count(digests, digests[0]) == communicator.size()) return;
  const std::vector<std::string> texts = communicator.all_gather_text(text);
  const auto other = std::ranges::find_if(texts, [&](const std::string& found) { return found != texts[0]; });
  require(other != texts.end(), "the {} of two ranks differ in their digests only", label);
  const std::vector<std::string_view> expected = lines_of(texts[0]), found = lines_of(*other);
  const auto line = std::ranges::mismatch(expected, found).in1 - expected.begin();
  const auto shown = [line](const std::vector<std::string_view>& lines) {
    return line < std::ssize(lines) ? lines[static_cast<std::size_t>(line)] : "(nothing)";
  };
  // The TOML section that the line belongs to.
  const auto last = std::make_reverse_iterator(expected.begin() + line);
  const auto header = std::find_if(last, expected.rend(), [](std::string_view row) { return row.starts_with('['); });
  fail(Status::peer,
       "the {} of rank {} differs from rank 0's in line {}{}: '{}' instead of '{}': start all ranks with the same one",
       label, other - texts.begin(), line + 1, header == expected.rend() ? "" : fmt::format(" of {}", *header),
       shown(found), shown(expected));
}

}  // namespace dropcycle

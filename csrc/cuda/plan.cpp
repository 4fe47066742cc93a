#include "plan.h"

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <iomanip>
#include <sstream>
#include <stdexcept>
#include <vector>

#include "cost.h"
#include "steps.h"

namespace fused_rnn {
namespace {

constexpr int kKiB = 1024;

// From NVIDIA's datasheets, the table of compute capabilities in the CUDA C++ Programming Guide, and for a slice of a
// GPU the MIG User Guide.
const Device kKnownDevices[] = {
    {"T4", 75, 40, 64 * kKiB},      {"A100", 80, 108, 163 * kKiB},       {"L4", 89, 58, 99 * kKiB},
    {"H100", 90, 132, 227 * kKiB},  {"H100 MIG 1g", 90, 16, 227 * kKiB}, {"H200", 90, 132, 227 * kKiB},
    {"B200", 100, 148, 227 * kKiB}, {"RTX 5090", 120, 170, 99 * kKiB},
};

template <class Value>
struct Named {
  const char* name;
  Value value;
};

template <class Value, int n>
Value lookup(const char* what, const std::string& name, const Named<Value> (&table)[n]) {
  std::string names;
  for (const auto& entry : table) {
    if (name == entry.name) return entry.value;
    names += std::string(names.empty() ? "" : ", ") + entry.name;
  }
  throw std::runtime_error(std::string(what) + " '" + name + "' is not one of " + names);
}

const Named<Math> kMaths[] = {
    {"float32", Math::kFloat32}, {"tf32", Math::kTf32}, {"bfloat16", Math::kBFloat16}, {"float16", Math::kFloat16}};

const Named<Tier> kTiers[] = {
    {"block", Tier::kBlock}, {"cluster", Tier::kCluster}, {"grid", Tier::kGrid}, {"stepwise", Tier::kStepwise}};

// Below this all of weight_hh would be loaded for hardly any step.
constexpr int64_t kFewSteps = 4;

std::string kib(int64_t bytes) { return std::to_string(ceil_div(bytes, kKiB)) + " KiB"; }

}  // namespace

Device known_device(const std::string& name) {
  std::string names;
  for (const Device& device : kKnownDevices) {
    if (device.name == name) return device;
    names += (names.empty() ? "" : ", ") + device.name;
  }
  throw std::runtime_error("device '" + name + "' is neither here nor one of " + names);
}

Math math_named(const std::string& name) { return lookup("dtype", name, kMaths); }

std::string why_not(Math math, int capability) {
  const std::string got = std::to_string(capability / 10) + "." + std::to_string(capability % 10);
  if (capability < 75) return "it needs compute capability 7.5 or later, and this GPU has " + got;
  if (math == Math::kBFloat16 && capability < 80)
    return "bfloat16 needs compute capability 8.0 or later, and this GPU has " + got;
  return "";
}

std::string why_not(const Shape& shape) {
  const int64_t each = std::max(shape.cell.gates, shape.cell.saved), P = shape.projection;
  const bool fits = 0 <= shape.T && shape.T <= INT_MAX && 0 <= shape.H && shape.H <= INT_MAX / each && 0 <= shape.B &&
                    shape.B <= INT_MAX / std::max<int64_t>(1, each * shape.H) && 0 <= P && P <= INT_MAX &&
                    shape.B <= INT_MAX / std::max<int64_t>(1, P);
  if (shape.L < 1 || shape.L > INT_MAX || shape.D < 1 || shape.D > 2)
    return "a call has at least one layer, in one direction or two, got L = " + std::to_string(shape.L) +
           ", D = " + std::to_string(shape.D);
  if (fits) return "";
  return "T and the numbers of one step must be below 2^31, got T = " + std::to_string(shape.T) +
         ", B = " + std::to_string(shape.B) + ", H = " + std::to_string(shape.H) +
         (P ? ", P = " + std::to_string(P) : "");
}

namespace {

constexpr int kMostInCluster = 8;  // blocks; every device that has clusters has these

// Some multiprocessors are left to other kernels: a communication with other GPUs must not wait for a layer to end.
constexpr int usable(int sm_count) { return sm_count - std::max(1, sm_count / 32); }

struct Wanted {  // what is forced of a plan; zeros where it is not
  int unit_tiles = 0, slices = 0, row_tiles = 0, together = 0;
};

class Planner {
 public:
  Planner(const Shape& shape, const Device& device)
      : shape_(shape),
        device_(device),
        tiles_(ceil_div(shape.H, kUnitTile)),
        step_bytes_(shape.B * shape.cell.gates * shape.H * int64_t(sizeof(float))),
        stepwise_{Tier::kStepwise,
                  "",
                  double(shape.L * shape.D * shape.T) * stepwise_cycles(shape),
                  int(chunk_of(shape.D)),
                  1,
                  {},
                  0,
                  0} {}

  // The plan of a tier; without one, where it cannot run the shape, the reason why.
  Plan of(Tier tier, Wanted wanted = {}) const {
    Plan best = stepwise_;
    if (tier != Tier::kStepwise && shape_.projection)
      best.reason = "no persistent kernel projects h";
    else if (tier == Tier::kCluster && device_.capability < oldest_capability(tier))
      best.reason = "clusters of blocks need compute capability 9.0 or later";
    else if (tier == Tier::kGrid && device_.capability < oldest_capability(tier))
      best.reason = "blocks exchange what they compute from compute capability 8.0 on";
    else if (tier == Tier::kGrid && !device_.cooperative)
      best.reason = "blocks that exchange what they compute need cooperative launches, which this GPU does not have";
    if (tier == Tier::kStepwise || !best.reason.empty()) return best;
    for (const Layout& layout : tier == Tier::kBlock ? of_one_block() : of_several_blocks(tier, wanted))
      for (const int64_t together : counts(tier, layout, wanted)) {
        const Plan plan = with(tier, layout, together);
        const bool is_better = best.tier == Tier::kStepwise || plan.cycles < best.cycles;
        if (is_better && plan.shared_bytes <= device_.shared_bytes) best = plan;
      }
    if (best.tier == Tier::kStepwise)
      best.reason = "weight_hh, " + kib(weight_bytes()) + ", does not fit " +
                    (wanted.slices ? "in blocks that are divided like that" : place(tier));
    return best;
  }

  // The one that takes the fewest cycles by the model.
  Plan best() const {
    Plan best = stepwise_;
    if (shape_.T < kFewSteps) {
      best.reason = "fewer than " + std::to_string(kFewSteps) + " steps do not pay for loading weight_hh";
      return best;
    }
    for (Tier tier : {Tier::kBlock, Tier::kCluster, Tier::kGrid}) {
      const Plan plan = of(tier);
      if (plan.tier == tier && plan.cycles < best.cycles)
        best = plan;
      else if (best.tier == Tier::kStepwise)
        best.reason = plan.tier == tier ? "that takes fewer cycles by the model" : plan.reason;
    }
    return best;
  }

 private:
  int64_t weight_bytes() const { return shape_.cell.gates * shape_.H * shape_.H * element_bytes(shape_.math); }
  int most_blocks(Tier tier) const { return tier == Tier::kCluster ? kMostInCluster : usable(device_.sm_count); }
  std::string place(Tier tier) const {
    const std::string each = kib(device_.shared_bytes);
    return tier == Tier::kBlock ? "in one block's " + each
                                : "in " + std::to_string(most_blocks(tier)) + " blocks of " + each;
  }

  int in_registers(bool one_block) const {
    return most_in_registers(shape_.math, shape_.cell.gates, shape_.backward, one_block);
  }

  std::vector<Layout> of_one_block() const {
    std::vector<Layout> layouts;
    if (tiles_ > most_warps(shape_.math, false)) return layouts;
    const Layout layout{int(shape_.H), shape_.cell.gates, element_bytes(shape_.math), 0, 1, false, int(tiles_), 1, 1};
    layouts.push_back(layout);
    if (const int most = in_registers(true); most && tiles_ <= most) {
      layouts.push_back(layout);
      layouts.back().in_registers = most;
    }
    return layouts;
  }

  std::vector<Layout> of_several_blocks(Tier tier, Wanted wanted) const {
    std::vector<Layout> layouts;
    const auto add = [&](int units, int slices, int rows) {
      const int64_t depth = ceil_div(tiles_, slices);
      const int64_t each = tier == Tier::kCluster ? kClusterBlocks : 1;
      const int64_t blocks = ceil_div(ceil_div(tiles_, units), each) * each;
      if (blocks > 1 && blocks <= std::min<int64_t>(tiles_, most_blocks(tier)) && (slices - 1) * depth < tiles_)
        layouts.push_back({int(shape_.H), shape_.cell.gates, element_bytes(shape_.math), in_registers(false),
                           int(blocks), tier == Tier::kCluster, units, slices, rows});
    };
    const int most = most_warps(shape_.math, true);
    const int64_t row_tiles = ceil_div(shape_.B, kBatchTile);
    for (int units = 1; units <= most; ++units)
      for (int slices = 1; units * slices <= most; ++slices)
        for (int rows = 1; 2 * rows <= slices; ++rows)
          if (wanted.slices ? units == wanted.unit_tiles && slices == wanted.slices && rows == wanted.row_tiles
                            : rows <= row_tiles)
            add(units, slices, rows);
    return layouts;
  }

  // Steps of a chunk, by the memory for gates_x of that many layers or directions.
  int64_t chunk_of(int64_t layers) const {
    return std::max<int64_t>(1, std::min(shape_.T, device_.chunk_bytes / std::max<int64_t>(1, layers * step_bytes_)));
  }

  // Numbers of layers or directions side by side to compare: one, as many as run at the same time, and all.
  std::vector<int64_t> counts(Tier tier, const Layout& layout, Wanted wanted) const {
    const int64_t at_once = groups_at_once(layout),
                  most = std::min<int64_t>(kMostTogether, shape_.D > 1 ? shape_.D : shape_.L);
    const int64_t possible = tier == Tier::kGrid ? std::min(most, at_once) : most;
    if (wanted.together) return {std::min<int64_t>(wanted.together, possible)};
    std::vector<int64_t> counts{1};
    for (const int64_t count : {std::min(possible, at_once / groups_needed(layout)), possible})
      if (count > counts.back()) counts.push_back(count);
    return counts;
  }

  Plan with(Tier tier, const Layout& layout, int64_t together) const {
    Plan plan = stepwise_;
    plan.tier = tier;
    plan.together = int(together);
    plan.layout = layout;
    plan.shared_bytes = layout.shared_bytes(shape_.backward, shape_.cell.resets_before, shape_.cell.states > 1);
    // All groups of a grid run at the same time; other groups also one after the other.
    const int64_t needed = groups_needed(layout), at_once = groups_at_once(layout);
    plan.groups = int(tier == Tier::kGrid ? std::min(needed, at_once / together) : needed);
    const int64_t launches = ceil_div(needed, plan.groups);
    const double start = double(launches) * starting_cycles(layout, together);
    const double step = persistent_cycles(shape_, layout) *
                        double(tier == Tier::kGrid ? launches : ceil_div(needed * together, at_once));
    // A stacked layer starts one chunk after the one before it. Shorter chunks shorten that delay, but add starts.
    const int64_t behind = shape_.D > 1 ? 0 : together - 1;
    const int64_t most = chunk_of(shape_.D > 1 ? shape_.D : together);
    const double balanced = behind ? std::sqrt(double(shape_.T) * start / (double(behind) * step)) : double(most);
    plan.chunk = int(std::min(most, std::max<int64_t>(kFewSteps, std::lround(std::min(balanced, double(most))))));
    const double turns = double(shape_.D > 1 ? shape_.L * ceil_div(shape_.D, together) : ceil_div(shape_.L, together));
    const double waits = shape_.D > 1 ? 0 : double(shape_.L) - turns;  // each for a chunk of the layer before
    plan.cycles = (turns * double(shape_.T) / plan.chunk + waits) * (plan.chunk * step + start);
    return plan;
  }

  int64_t groups_needed(const Layout& layout) const { return std::max<int64_t>(1, ceil_div(shape_.B, layout.rows())); }
  int64_t groups_at_once(const Layout& layout) const { return std::max(1, usable(device_.sm_count) / layout.blocks); }

  const Shape& shape_;
  const Device& device_;
  const int64_t tiles_, step_bytes_;  // bytes: of a step's gates_x
  const Plan stepwise_;
};

// A tier, what divides the work of several blocks, and how many layers or directions are side by side: "grid", "grid
// 2x4x1", "block together 2", "grid 2x4x1 together 2".
std::pair<Tier, Wanted> forced_plan(const std::string& text) {
  std::istringstream words(text);
  std::string tier_name, word, rest;
  words >> tier_name;
  const Tier tier = lookup("FUSED_RNN_TIER", tier_name, kTiers);
  Wanted wanted;
  bool is_right = true;
  if (words >> word && word != "together") {
    int length = 0;
    const int found =
        std::sscanf(word.c_str(), "%dx%dx%d%n", &wanted.unit_tiles, &wanted.slices, &wanted.row_tiles, &length);
    is_right = (tier == Tier::kGrid || tier == Tier::kCluster) && found == 3 && size_t(length) == word.size() &&
               wanted.slices >= 1;
    word.clear();
    words >> word;
  }
  if (word == "together")
    is_right &= words >> wanted.together && wanted.together >= 1 && tier != Tier::kStepwise;
  else
    is_right &= word.empty();
  if (!is_right || words >> rest)
    throw std::runtime_error(
        "FUSED_RNN_TIER must be a tier, or such as 'grid 2x4x1' or 'grid 2x4x1 together 2', got '" + text + "'");
  return {tier, wanted};
}

}  // namespace

Plan make_plan(const Shape& shape, const Device& device) {
  if (const std::string reason = why_not(shape); !reason.empty()) throw std::runtime_error(reason);
  const Planner planner(shape, device);
  const char* const forced = std::getenv("FUSED_RNN_TIER");
  if (!forced || !*forced) return planner.best();
  const auto [tier, wanted] = forced_plan(forced);
  Plan plan = planner.of(tier, wanted);
  if (plan.tier != tier)
    throw std::runtime_error("FUSED_RNN_TIER=" + std::string(forced) + " cannot run this layer: " + plan.reason);
  if (tier == Tier::kStepwise) plan.reason = "FUSED_RNN_TIER forces it";
  return plan;
}

std::string to_string(const Plan& plan, const Shape& shape) {
  const Layout& layout = plan.layout;
  const auto counted = [](int n, const char* what) { return std::to_string(n) + " " + what + (n == 1 ? "" : "s"); };
  std::ostringstream text;
  if (plan.tier == Tier::kStepwise) {
    text << "stepwise: " << (shape.projection ? "two matmuls and two kernels" : "one matmul and one kernel")
         << " a step, because " << plan.reason;
  } else {
    const int in_registers = std::min(layout.depth(), layout.in_registers), in_shared = layout.depth() - in_registers;
    if (plan.tier == Tier::kBlock)
      text << "block: " << counted(plan.groups, "block");
    else
      text << (layout.cluster ? "cluster " : "grid ") << layout.unit_tiles << "x" << layout.slices << "x"
           << layout.row_tiles << ": " << counted(plan.groups, "group") << " of " << counted(layout.blocks, "block");
    text << " of " << 32 * layout.warps() << " threads and " << layout.rows() << " rows; weight_hh, "
         << kib(int64_t(layout.gates) * layout.H * layout.H * layout.element) << ", in "
         << (in_shared == 0      ? "registers"
             : in_registers == 0 ? "shared memory"
                                 : "registers and shared memory")
         << "; " << kib(plan.shared_bytes) << " of shared memory";
  }
  if (plan.together > 1 && shape.D > 1) text << "; both directions side by side";
  if (plan.together > 1 && shape.D == 1)
    text << "; " << plan.together << " layers side by side, each " << plan.chunk << " steps behind the one before";
  const double us = microseconds(plan.cycles) / double(std::max<int64_t>(1, shape.T));
  text << "; by the model of an H100 " << std::fixed << std::setprecision(2) << us << " us a step";
  return text.str();
}

}  // namespace fused_rnn

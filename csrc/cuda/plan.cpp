#include "plan.h"

#include <algorithm>
#include <climits>
#include <cstdlib>
#include <sstream>
#include <stdexcept>

namespace fused_rnn {
namespace {

constexpr int kKiB = 1024;

// From NVIDIA's datasheets and the table of compute capabilities in the CUDA C++ Programming Guide.
const Device kKnownDevices[] = {
    {"T4", 75, 40, 64 * kKiB},         {"A100", 80, 108, 163 * kKiB}, {"L4", 89, 58, 99 * kKiB},
    {"H100", 90, 132, 227 * kKiB},     {"H200", 90, 132, 227 * kKiB}, {"B200", 100, 148, 227 * kKiB},
    {"RTX 5090", 120, 170, 99 * kKiB},
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

const Named<Tier> kTiers[] = {{"block", Tier::kBlock}, {"stepwise", Tier::kStepwise}};

// Below this a block would load all of weight_hh for hardly any step.
constexpr int64_t kFewSteps = 4;

std::string kib(int64_t bytes) { return std::to_string((bytes + kKiB - 1) / kKiB) + " KiB"; }

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
  const int64_t each = std::max(shape.cell.gates, shape.cell.saved);
  const bool fits = 0 <= shape.T && shape.T <= INT_MAX && 0 <= shape.H && shape.H <= INT_MAX / each && 0 <= shape.B &&
                    shape.B <= INT_MAX / std::max<int64_t>(1, each * shape.H);
  if (fits) return "";
  return "T and the numbers of one step must be below 2^31, got T = " + std::to_string(shape.T) +
         ", B = " + std::to_string(shape.B) + ", H = " + std::to_string(shape.H);
}

namespace {

Plan best_plan(const Shape& shape, const Device& device) {
  const int G = shape.cell.gates;
  const int64_t step_bytes = shape.B * G * shape.H * int64_t(sizeof(float));
  const int64_t chunk = std::max<int64_t>(1, std::min(shape.T, device.chunk_bytes / std::max<int64_t>(1, step_bytes)));
  Plan plan{Tier::kStepwise, "", int(chunk), 0, 0, false, 0, 0};
  if (shape.T < kFewSteps) {
    plan.reason = "fewer than " + std::to_string(kFewSteps) + " steps do not pay for loading weight_hh";
    return plan;
  }
  const int depth = tile_depth(shape.math);
  const bool resident = depth > 0 && shape.H <= kResidentDepth * depth;
  const int most_units = most_warps(shape.math, resident) * kUnitTile;
  const BlockLayout layout{int(std::min<int64_t>(shape.H, most_units)), G, element_bytes(shape.math), resident};
  const int64_t shared = layout.shared_bytes(shape.backward, shape.cell.resets_before, shape.cell.states > 1);
  const int64_t weights = G * shape.H * shape.H * element_bytes(shape.math);
  if (shape.H > most_units || shared > device.shared_bytes) {
    plan.reason = "weight_hh, " + kib(weights) + ", does not fit in one block's " + kib(device.shared_bytes);
    return plan;
  }
  plan.tier = Tier::kBlock;
  plan.blocks = (shape.B + kBatchTile - 1) / kBatchTile;
  plan.threads = 32 * layout.warps();
  plan.resident = resident;
  plan.on_chip = weights;
  plan.shared_bytes = shared;
  return plan;
}

}  // namespace

Plan make_plan(const Shape& shape, const Device& device) {
  if (const std::string reason = why_not(shape); !reason.empty()) throw std::runtime_error(reason);
  Plan plan = best_plan(shape, device);
  const char* const forced = std::getenv("FUSED_RNN_TIER");
  if (!forced || !*forced) return plan;
  const Tier tier = lookup("FUSED_RNN_TIER", forced, kTiers);
  if (tier == plan.tier) return plan;
  if (tier == Tier::kBlock) throw std::runtime_error("FUSED_RNN_TIER=block cannot run this layer: " + plan.reason);
  plan.tier = tier;
  plan.reason = "FUSED_RNN_TIER forces it";
  return plan;
}

std::string to_string(const Plan& plan) {
  if (plan.tier == Tier::kStepwise) return "stepwise: one matmul and one kernel a step, because " + plan.reason;
  std::ostringstream text;
  text << "block: " << plan.blocks << (plan.blocks == 1 ? " block of " : " blocks of ") << plan.threads
       << " threads and " << kBatchTile << " rows; weight_hh, " << kib(plan.on_chip) << ", in "
       << (plan.resident ? "registers" : "shared memory") << "; " << kib(plan.shared_bytes) << " of shared memory";
  return text.str();
}

}  // namespace fused_rnn

// What the extension says of CUDA, also where it was built without it: architectures, and plans for any device.
#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "plan.h"
#include "runtime.h"

namespace fused_rnn {

const char* built_architectures() { return FUSED_RNN_CUDA_ARCHS; }

namespace {

Math math_of(const std::string& dtype, bool allow_tf32, int capability) {
  return dtype == "float32" ? float32_math(allow_tf32, capability) : math_named(dtype);
}

std::string cuda_architectures() { return built_architectures(); }

constexpr bool kBuilt = sizeof(FUSED_RNN_CUDA_ARCHS) > 1;

std::string cuda_why_not(int64_t index, std::string dtype) {
  if constexpr (kBuilt) {
    const std::string reason = why_not_device(int(index));
    if (!reason.empty()) return reason;
    const int capability = device_at(int(index)).capability;
    return why_not(math_of(dtype, false, capability), capability);
  }
  return "the extension was built without CUDA";
}

// A device that is here, "cuda:0", or one of the datasheets'.
Device device_named(const std::string& name) {
  const std::string prefix = "cuda:";
  if constexpr (kBuilt)
    if (name.compare(0, prefix.size(), prefix) == 0) return device_at(std::stoi(name.substr(prefix.size())));
  return known_device(name);
}

std::tuple<std::string, std::string> cuda_plan(std::string cell, std::string dtype, int64_t T, int64_t B, int64_t H,
                                               int64_t L, int64_t D, bool backward, bool allow_tf32,
                                               std::string device_name, int64_t projection) {
  const Device device = device_named(device_name);
  const Math math = math_of(dtype, allow_tf32, device.capability);
  const Shape shape{cell_named(cell), math, T, B, H, L, D, backward, projection};
  for (const std::string& reason : {why_not(math, device.capability), why_not(shape)})
    if (!reason.empty()) return {"", reason};
  return {to_string(make_plan(shape, device), shape), ""};
}

}  // namespace
}  // namespace fused_rnn

STABLE_TORCH_LIBRARY_IMPL(fused_rnn, CompositeExplicitAutograd, m) {
  m.impl("cuda_architectures", TORCH_BOX(&fused_rnn::cuda_architectures));
  m.impl("cuda_why_not", TORCH_BOX(&fused_rnn::cuda_why_not));
  m.impl("cuda_plan", TORCH_BOX(&fused_rnn::cuda_plan));
}

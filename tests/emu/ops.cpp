// The ops of csrc/cuda over the emulator, as fused_rnn_emu and for CPU tensors: the same checks, plans, launches and
// kernels as on a GPU.
#define FUSED_RNN_POISON

#include "../../csrc/ops.h"

#include "../../csrc/cuda/layers.h"
#include "../../csrc/schemas.h"
#include "emulator.h"
#include "host.h"

namespace fused_rnn {
namespace {

// One of the planner's devices, or with a number that is not 0 a variation of it.
void set_device(std::string name, bool cooperative, int64_t chunk_bytes) {
  Device device = known_device(name);
  device.cooperative = cooperative;
  if (chunk_bytes) device.chunk_bytes = chunk_bytes;
  emulated_device() = device;
}

// The plan that the planner makes there.
std::string plan(std::string cell, std::string math, int64_t T, int64_t B, int64_t H, int64_t L, int64_t D,
                 bool backward) {
  const Shape shape{cell_named(cell), math_named(math), T, B, H, L, D, backward};
  return to_string(make_plan(shape, emulated_device()), shape);
}

// The names of the synchronising calls that were reached so far.
std::string sites() {
  std::string names;
  for (const auto& site : emu::sites()) names += (names.empty() ? "" : " ") + std::string(site.name);
  return names;
}

}  // namespace
}  // namespace fused_rnn

STABLE_TORCH_LIBRARY(fused_rnn_emu, m) {
  fused_rnn::define_ops(m);
  m.def("set_device(str name, bool cooperative, int chunk_bytes) -> ()");
  m.def("plan(str cell, str math, int T, int B, int H, int L, int D, bool backward) -> str");
  m.def("sites() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(fused_rnn_emu, CPU, m) { fused_rnn::Ops<fused_rnn::Cuda>::implement(m); }

STABLE_TORCH_LIBRARY_IMPL(fused_rnn_emu, CompositeExplicitAutograd, m) {
  m.impl("set_device", TORCH_BOX(&fused_rnn::set_device));
  m.impl("plan", TORCH_BOX(&fused_rnn::plan));
  m.impl("sites", TORCH_BOX(&fused_rnn::sites));
}

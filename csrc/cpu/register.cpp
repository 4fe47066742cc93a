// CPU implementations of the ops.
#include "../ops.h"
#include "isa.h"

namespace fused_rnn {

namespace {

struct Cpu {
  template <class S>
  static void forward(const Layer& layer, const ForwardArgs<S>& args, bool) {
    loops_of<S>(layer.cell).forward(args);
  }
  template <class S>
  static void backward(const Layer& layer, const BackwardArgs<S>& args, bool) {
    loops_of<S>(layer.cell).backward(args);
  }
};

std::string cpu_instruction_set() { return instruction_set().name; }

int64_t cpu_threads(std::string cell, ScalarType dtype, int64_t T, int64_t B, int64_t I, int64_t H, bool backward) {
  for (const int64_t size : {T, B, I, H})
    require(0 <= size && size <= (int64_t(1) << 40), "sizes must be from 0 to 2^40, got ", size);
  return with_storage_type(dtype, [&](auto tag) {
    return loops_of<typename decltype(tag)::type>(cell_named(cell)).workers({T, B, I, H}, backward);
  });
}

bool poisoned() {
#ifdef FUSED_RNN_POISON
  return true;
#else
  return false;
#endif
}

}  // namespace
}  // namespace fused_rnn

STABLE_TORCH_LIBRARY_IMPL(fused_rnn, CPU, m) { fused_rnn::Ops<fused_rnn::Cpu>::implement(m); }

STABLE_TORCH_LIBRARY_IMPL(fused_rnn, CompositeExplicitAutograd, m) {
  m.impl("cpu_instruction_set", TORCH_BOX(&fused_rnn::cpu_instruction_set));
  m.impl("cpu_threads", TORCH_BOX(&fused_rnn::cpu_threads));
  m.impl("poisoned", TORCH_BOX(&fused_rnn::poisoned));
}

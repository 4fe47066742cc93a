// CPU implementations of the ops, and PyTorch's threads for the loops.
#include <tuple>

#include "../ops.h"
#include "isa.h"
#include "parallel.h"

namespace fused_rnn {

// ---- parallel.h ----

void parallel_for(int64_t n, double flops, void (*body)(int64_t, int64_t, void*), void* context) {
  constexpr double kFlopsWorthAThread = 2e5;  // some 10 us of one core: what waking a thread costs, a few times over
  const double items = kFlopsWorthAThread / (flops < 1 ? 1 : flops);
  const int64_t grain = items < 1 ? 1 : items > double(n) ? n : int64_t(items);
  torch::stable::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) { body(begin, end, context); });
}

int64_t thread_count() { return int64_t(torch::stable::get_num_threads()); }

namespace {

// ---- The ops ----

template <class S>
const CellLoops<S>& loops_of(CellKind cell) {
  const Loops<S>& loops = std::get<Loops<S>>(instruction_set().loops());
  switch (cell) {
    case CellKind::kLstm: return loops.lstm;
    case CellKind::kGru: return loops.gru;
    default: return loops.gru_reset_before;
  }
}

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
  m.impl("poisoned", TORCH_BOX(&fused_rnn::poisoned));
}

// CPU implementations of the ops, and PyTorch's threads for the loops.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../bridge.h"
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

const auto launch_forward = [](CellKind cell, const auto& args) {
  using S = std::remove_pointer_t<decltype(args.output)>;
  loops_of<S>(cell).forward(args);
};

const auto launch_backward = [](CellKind cell, const auto& args) {
  using S = std::remove_pointer_t<decltype(args.grad_hx)>;
  loops_of<S>(cell).backward(args);
};

CellKind gru_kind(bool reset_after) { return reset_after ? CellKind::kGru : CellKind::kGruResetBefore; }

std::tuple<Tensor, Tensor, Tensor, Tensor> lstm_forward(Tensor x, Tensor weight_ih, Tensor weight_hh,
                                                        MaybeTensor bias_ih, MaybeTensor bias_hh, Tensor hx, Tensor cx,
                                                        MaybeTensor lengths, bool reverse, bool save) {
  const Layer layer(CellKind::kLstm, x, weight_ih, weight_hh, bias_ih, bias_hh, hx, cx, lengths);
  const ForwardResult r = run_forward(layer, reverse, save, launch_forward);
  return {r.output, r.hy, *r.cy, r.saved};
}

std::tuple<Tensor, Tensor, Tensor> gru_forward(Tensor x, Tensor weight_ih, Tensor weight_hh, MaybeTensor bias_ih,
                                               MaybeTensor bias_hh, Tensor hx, MaybeTensor lengths, bool reset_after,
                                               bool reverse, bool save) {
  const Layer layer(gru_kind(reset_after), x, weight_ih, weight_hh, bias_ih, bias_hh, hx, std::nullopt, lengths);
  const ForwardResult r = run_forward(layer, reverse, save, launch_forward);
  return {r.output, r.hy, r.saved};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> lstm_backward(
    MaybeTensor grad_output, MaybeTensor grad_hy, MaybeTensor grad_cy, Tensor x, Tensor weight_ih, Tensor weight_hh,
    MaybeTensor bias_ih, MaybeTensor bias_hh, Tensor hx, Tensor cx, Tensor output, Tensor saved, MaybeTensor lengths,
    bool reverse, bool needs_x, bool needs_weights) {
  const Layer layer(CellKind::kLstm, x, weight_ih, weight_hh, bias_ih, bias_hh, hx, cx, lengths);
  const BackwardResult r = run_backward(layer, grad_output, grad_hy, grad_cy, output, saved, reverse, needs_x,
                                        needs_weights, launch_backward);
  return {r.grad_x, r.grad_weight_ih, r.grad_weight_hh, r.grad_bias_ih, r.grad_bias_hh, r.grad_hx, *r.grad_cx};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> gru_backward(
    MaybeTensor grad_output, MaybeTensor grad_hy, Tensor x, Tensor weight_ih, Tensor weight_hh, MaybeTensor bias_ih,
    MaybeTensor bias_hh, Tensor hx, Tensor output, Tensor saved, MaybeTensor lengths, bool reset_after, bool reverse,
    bool needs_x, bool needs_weights) {
  const Layer layer(gru_kind(reset_after), x, weight_ih, weight_hh, bias_ih, bias_hh, hx, std::nullopt, lengths);
  const BackwardResult r = run_backward(layer, grad_output, grad_hy, std::nullopt, output, saved, reverse, needs_x,
                                        needs_weights, launch_backward);
  return {r.grad_x, r.grad_weight_ih, r.grad_weight_hh, r.grad_bias_ih, r.grad_bias_hh, r.grad_hx};
}

std::string cpu_instruction_set() { return instruction_set().name; }

}  // namespace
}  // namespace fused_rnn

STABLE_TORCH_LIBRARY_IMPL(fused_rnn, CPU, m) {
  m.impl("lstm_forward", TORCH_BOX(&fused_rnn::lstm_forward));
  m.impl("lstm_backward", TORCH_BOX(&fused_rnn::lstm_backward));
  m.impl("gru_forward", TORCH_BOX(&fused_rnn::gru_forward));
  m.impl("gru_backward", TORCH_BOX(&fused_rnn::gru_backward));
}

STABLE_TORCH_LIBRARY_IMPL(fused_rnn, CompositeExplicitAutograd, m) {
  m.impl("cpu_instruction_set", TORCH_BOX(&fused_rnn::cpu_instruction_set));
}

// The four ops for a device: from the schema's arguments to a Layer, and back to the schema's results.
#pragma once

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "bridge.h"

namespace fused_rnn {

inline CellKind gru_kind(bool reset_after) { return reset_after ? CellKind::kGru : CellKind::kGruResetBefore; }

// Device has two static functions, `forward(layer, ForwardArgs<S>, allow_tf32)` and
// `backward(layer, BackwardArgs<S>, allow_tf32)`, that run its kernels.
template <class Device>
struct Ops {
  static std::tuple<Tensor, Tensor, Tensor, Tensor> lstm_forward(Tensor x, Tensor weight_ih, Tensor weight_hh,
                                                                 MaybeTensor bias_ih, MaybeTensor bias_hh, Tensor hx,
                                                                 Tensor cx, MaybeTensor lengths, bool reverse,
                                                                 bool allow_tf32, bool save) {
    const Layer layer(CellKind::kLstm, x, weight_ih, weight_hh, bias_ih, bias_hh, hx, cx, lengths);
    const ForwardResult r = run_forward(layer, reverse, save, forward(allow_tf32));
    return {r.output, r.hy, *r.cy, r.saved};
  }

  static std::tuple<Tensor, Tensor, Tensor> gru_forward(Tensor x, Tensor weight_ih, Tensor weight_hh,
                                                        MaybeTensor bias_ih, MaybeTensor bias_hh, Tensor hx,
                                                        MaybeTensor lengths, bool reset_after, bool reverse,
                                                        bool allow_tf32, bool save) {
    const Layer layer(gru_kind(reset_after), x, weight_ih, weight_hh, bias_ih, bias_hh, hx, std::nullopt, lengths);
    const ForwardResult r = run_forward(layer, reverse, save, forward(allow_tf32));
    return {r.output, r.hy, r.saved};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> lstm_backward(
      MaybeTensor grad_output, MaybeTensor grad_hy, MaybeTensor grad_cy, Tensor x, Tensor weight_ih, Tensor weight_hh,
      MaybeTensor bias_ih, MaybeTensor bias_hh, Tensor hx, Tensor cx, Tensor output, Tensor saved, MaybeTensor lengths,
      bool reverse, bool allow_tf32, bool needs_x, bool needs_weights) {
    const Layer layer(CellKind::kLstm, x, weight_ih, weight_hh, bias_ih, bias_hh, hx, cx, lengths);
    const BackwardResult r = run_backward(layer, grad_output, grad_hy, grad_cy, output, saved, reverse, needs_x,
                                          needs_weights, backward(allow_tf32));
    return {r.grad_x, r.grad_weight_ih, r.grad_weight_hh, r.grad_bias_ih, r.grad_bias_hh, r.grad_hx, *r.grad_cx};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> gru_backward(
      MaybeTensor grad_output, MaybeTensor grad_hy, Tensor x, Tensor weight_ih, Tensor weight_hh, MaybeTensor bias_ih,
      MaybeTensor bias_hh, Tensor hx, Tensor output, Tensor saved, MaybeTensor lengths, bool reset_after, bool reverse,
      bool allow_tf32, bool needs_x, bool needs_weights) {
    const Layer layer(gru_kind(reset_after), x, weight_ih, weight_hh, bias_ih, bias_hh, hx, std::nullopt, lengths);
    const BackwardResult r = run_backward(layer, grad_output, grad_hy, std::nullopt, output, saved, reverse, needs_x,
                                          needs_weights, backward(allow_tf32));
    return {r.grad_x, r.grad_weight_ih, r.grad_weight_hh, r.grad_bias_ih, r.grad_bias_hh, r.grad_hx};
  }

  template <class Library>
  static void implement(Library& m) {
    m.impl("lstm_forward", TORCH_BOX(&lstm_forward));
    m.impl("lstm_backward", TORCH_BOX(&lstm_backward));
    m.impl("gru_forward", TORCH_BOX(&gru_forward));
    m.impl("gru_backward", TORCH_BOX(&gru_backward));
  }

 private:
  static auto forward(bool allow_tf32) {
    return [=](const Layer& layer, const auto& args) { Device::forward(layer, args, allow_tf32); };
  }
  static auto backward(bool allow_tf32) {
    return [=](const Layer& layer, const auto& args) { Device::backward(layer, args, allow_tf32); };
  }
};

}  // namespace fused_rnn

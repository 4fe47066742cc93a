// The schemas of the four ops that run a layer in one direction, for any namespace. `saved` is what the backward needs,
// empty unless `save`. A gradient that is not needed comes back empty. `allow_tf32` lets float32 products round their
// factors to TF32 where the device has it. Fake kernels and derivatives: fused_rnn/autograd.py.
#pragma once

namespace fused_rnn {

template <class Library>
void define_ops(Library& m) {
  m.def(
      "lstm_forward(Tensor x, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, Tensor hx, "
      "Tensor cx, Tensor? lengths, bool reverse, bool allow_tf32, bool save) "
      "-> (Tensor output, Tensor hy, Tensor cy, Tensor saved)");
  m.def(
      "lstm_backward(Tensor? grad_output, Tensor? grad_hy, Tensor? grad_cy, Tensor x, Tensor weight_ih, "
      "Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, Tensor hx, Tensor cx, Tensor output, Tensor saved, "
      "Tensor? lengths, bool reverse, bool allow_tf32, bool needs_x, bool needs_weights) "
      "-> (Tensor grad_x, Tensor grad_weight_ih, Tensor grad_weight_hh, Tensor grad_bias_ih, Tensor grad_bias_hh, "
      "Tensor grad_hx, Tensor grad_cx)");
  m.def(
      "gru_forward(Tensor x, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, Tensor hx, "
      "Tensor? lengths, bool reset_after, bool reverse, bool allow_tf32, bool save) "
      "-> (Tensor output, Tensor hy, Tensor saved)");
  m.def(
      "gru_backward(Tensor? grad_output, Tensor? grad_hy, Tensor x, Tensor weight_ih, Tensor weight_hh, "
      "Tensor? bias_ih, Tensor? bias_hh, Tensor hx, Tensor output, Tensor saved, Tensor? lengths, bool reset_after, "
      "bool reverse, bool allow_tf32, bool needs_x, bool needs_weights) "
      "-> (Tensor grad_x, Tensor grad_weight_ih, Tensor grad_weight_hh, Tensor grad_bias_ih, Tensor grad_bias_hh, "
      "Tensor grad_hx)");
}

}  // namespace fused_rnn

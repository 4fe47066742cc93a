// The native table of contents. One op runs one layer in one direction; `saved` is what its backward needs, empty
// unless `save`. A gradient that is not needed comes back empty. Fake kernels and derivatives: fused_rnn/autograd.py.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fused_rnn, m) {
  m.def(
      "lstm_forward(Tensor x, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, Tensor hx, "
      "Tensor cx, Tensor? lengths, bool reverse, bool save) "
      "-> (Tensor output, Tensor hy, Tensor cy, Tensor saved)");
  m.def(
      "lstm_backward(Tensor? grad_output, Tensor? grad_hy, Tensor? grad_cy, Tensor x, Tensor weight_ih, "
      "Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, Tensor hx, Tensor cx, Tensor output, Tensor saved, "
      "Tensor? lengths, bool reverse, bool needs_x, bool needs_weights) "
      "-> (Tensor grad_x, Tensor grad_weight_ih, Tensor grad_weight_hh, Tensor grad_bias_ih, Tensor grad_bias_hh, "
      "Tensor grad_hx, Tensor grad_cx)");
  m.def(
      "gru_forward(Tensor x, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, Tensor hx, "
      "Tensor? lengths, bool reset_after, bool reverse, bool save) "
      "-> (Tensor output, Tensor hy, Tensor saved)");
  m.def(
      "gru_backward(Tensor? grad_output, Tensor? grad_hy, Tensor x, Tensor weight_ih, Tensor weight_hh, "
      "Tensor? bias_ih, Tensor? bias_hh, Tensor hx, Tensor output, Tensor saved, Tensor? lengths, bool reset_after, "
      "bool reverse, bool needs_x, bool needs_weights) "
      "-> (Tensor grad_x, Tensor grad_weight_ih, Tensor grad_weight_hh, Tensor grad_bias_ih, Tensor grad_bias_hh, "
      "Tensor grad_hx)");
  m.def("cpu_instruction_set() -> str");
}

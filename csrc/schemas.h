// The schemas of the ops that run a call, for any namespace: `forward` with its derivative `backward`, and `inference`,
// the forward of a small call without a derivative. Autograd does not see it, and each argument of an op costs time.
// `weights` are those of all layers and directions in torch.nn's order. The states hx and cx are torch.nn's, or absent
// for zeros. `lengths` end the rows of a batch; with kPacked they are batch_sizes. `resets`, [T, B], say where a new
// sequence begins inside a row. `masks` multiply the output of every layer but the last; there may be none. `flags` are
// those of enum Flag. `results` are the output and the final states, of a step the states alone; with kSave, tensors
// that the backward needs follow. `kept` is the first result and those tensors. `grads` are those of the input, of the
// weights and of the states that are there, each empty if it is not needed. Fake kernels and derivatives:
// fused_rnn/autograd.py.
#pragma once

namespace fused_rnn {

template <class Library>
void define_ops(Library& m) {
  m.def(
      "forward(str cell, Tensor input, Tensor[] weights, Tensor? hx, Tensor? cx, Tensor? lengths, Tensor? resets, "
      "Tensor[] masks, int flags) -> Tensor[] results");
  m.def("inference(str cell, Tensor input, Tensor[] weights, Tensor? hx, Tensor? cx, int flags) -> Tensor[] results");
  m.def(
      "backward(Tensor? grad_output, Tensor? grad_hy, Tensor? grad_cy, Tensor[] kept, str cell, Tensor input, "
      "Tensor[] weights, Tensor? hx, Tensor? cx, Tensor? lengths, Tensor? resets, Tensor[] masks, int flags) -> "
      "Tensor[] grads");
}

}  // namespace fused_rnn

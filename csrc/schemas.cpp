// The native table of contents.
#include "schemas.h"

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fused_rnn, m) {
  fused_rnn::define_ops(m);
  // The inference of one layer in one direction, or of a cell, whose tensors are arguments of their own: a list of them
  // takes a sixth of the time of a call. Those of bfloat16 weights come in the order of Call::weights all the same.
  m.def(
      "layer_inference(str cell, Tensor input, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, "
      "Tensor? hx, Tensor? cx, int flags) -> Tensor[] results");
  // A stack of layers for single steps on the CPU: a pointer for fused_rnn_step and fused_rnn_free_stream of
  // cpu/stream.cpp.
  m.def(
      "make_stream(str cell, Tensor input, Tensor outputs, Tensor[] weights, Tensor hx, Tensor? cx, int flags) -> int");
  m.def("cpu_instruction_set() -> str");
  // The instruction sets that are here, by their numbers from 1 as in the flags; "" for one that is not here or runs
  // such a call as one before it does.
  m.def("cpu_instruction_sets(str cell, ScalarType dtype, int flags) -> str[]");
  // How a layer runs on the CPU in one direction, in words: instruction set and threads. projection: its size, or 0. Of
  // the flags, those of precision count.
  m.def(
      "cpu_plan(str cell, ScalarType dtype, int T, int B, int I, int H, int projection, bool training, int flags) -> "
      "str");
  // The least rows (step, batch) of a float32 call whose products may have factors of bfloat16; 0: none has.
  m.def("cpu_reduced_rows() -> int");
  // The layout of the panels of quantised weights of a cell: lanes of a vector, vectors of units in a panel, vectors of
  // a tile, and the number that is added to each weight (fused_rnn/panels.py). The flags name the weights' dtype.
  m.def("cpu_panel_layout(str cell, int flags) -> int[]");
  m.def("poisoned() -> bool");  // built with FUSED_RNN_POISON: for tests, and slow
  // The CUDA architectures that the extension has code for, "80 90a 100", or "" for none.
  m.def("cuda_architectures() -> str");
  // Why the CUDA kernels cannot run on a GPU that is here, a sentence, or "" if they can.
  m.def("cuda_why_not(int device_index, str dtype) -> str");
  // The plan for a layer, in words, or why there is none; `device` is a GPU that is here, "cuda:0", or one of the table
  // in csrc/cuda/plan.cpp.
  m.def(
      "cuda_plan(str cell, str dtype, int T, int B, int H, int L, int D, bool backward, bool allow_tf32, str device, "
      "int projection=0) -> (str plan, str why_not)");
}

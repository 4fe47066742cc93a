// The device of ops.h: layers side by side on a GPU.
#pragma once

#include "backward.h"
#include "forward.h"

namespace fused_rnn {

template <class S>
class CudaPass : Pass<S> {
 public:
  using Pass<S>::Pass;

  int64_t together() const { return this->context.D > 1 ? 1 : this->plan.together; }

  void run(const Layers<ForwardArgs<S, S>>& layers) const { this->template run_layers<ForwardLayer<S>>(layers); }

  void run(Layers<BackwardArgs<S, S>> layers) const {
    if (this->context.D > 1 && !this->is_one_chunk()) share_grad_x(layers);
    this->template run_layers<BackwardLayer<S>>(layers);
  }

 private:
  // With several chunks, each direction comes first in some of the steps: both add to zeros.
  void share_grad_x(Layers<BackwardArgs<S, S>>& directions) const {
    const BackwardArgs<S, S>& args = directions[0];
    if (!args.grad_x) return;
    const LayerSizes sizes{args.T, args.B, args.I, args.I, args.I, args.rows};  // rows of I numbers
    fill_with_zeros(rows_at(this->context, args.grad_x, sizes, args.I));
    for (BackwardArgs<S, S>& each : directions) each.adds_grad_x = true;
  }
};

template <>
class CudaPass<double> {
 public:
  CudaPass(const Context&, const LayerSizes&, bool) {
    fail("the CUDA kernels are for float32, bfloat16 and float16, got float64");
  }
  int64_t together() const { return 1; }
  template <class Args>
  void run(const Layers<Args>&) const {}
};

struct Cuda {
  template <class S>
  using Pass = CudaPass<S>;
  // Half the memory in 16 bits; gate gradients are rounded to the storage type as well.
  static constexpr bool kSavesAccumulated = false;
  static constexpr QuantizedElements kQuantizedElements = nullptr;
};

}  // namespace fused_rnn

// The device of ops.h: layers side by side on a GPU.
#pragma once

#include "backward.h"
#include "forward.h"

namespace fused_rnn {

struct Cuda {
  template <class S>
  static int64_t layers_together(const Context& context, const LayerSizes& sizes, bool backward) {
    if constexpr (std::is_same<S, double>::value)
      refuse_double();
    else
      return plan_of<S>(context, sizes, device_of(context.input), backward).together;
  }

  template <class S>
  static void forward(const Context& context, const Layers<ForwardArgs<S>>& layers) {
    if constexpr (std::is_same<S, double>::value) {
      refuse_double();
    } else {
      const Pass<S> pass(context, layers[0], false);
      pass.template run<ForwardLayer<S>>(layers);
    }
  }

  template <class S>
  static void backward(const Context& context, Layers<BackwardArgs<S>> layers) {
    if constexpr (std::is_same<S, double>::value) {
      refuse_double();
    } else {
      const Pass<S> pass(context, layers[0], true);
      if (context.D > 1 && !pass.is_one_chunk()) share_grad_x(context, layers);
      pass.template run<BackwardLayer<S>>(layers);
    }
  }

 private:
  // Of several chunks, either direction is the first one somewhere.
  template <class S>
  static void share_grad_x(const Context& context, Layers<BackwardArgs<S>>& directions) {
    const BackwardArgs<S>& args = directions[0];
    if (!args.grad_x) return;
    fill_with_zeros(rows_at(context, args.grad_x, LayerSizes{args.T, args.B, args.I, args.I, args.rows}, args.I));
    for (BackwardArgs<S>& each : directions) each.adds_grad_x = true;
  }

  [[noreturn]] static void refuse_double() {
    fail("the CUDA kernels are for float32, bfloat16 and float16, got float64");
  }
};

}  // namespace fused_rnn

// The ops for a device: from the schema's arguments to a stack of layers.
#pragma once

#include <torch/csrc/stable/library.h>

#include "stack.h"

namespace fused_rnn {

template <class Device>
struct Ops {
  static Tensors forward(std::string cell, Tensor input, Tensors weights, MaybeTensor hx, MaybeTensor cx,
                         MaybeTensor lengths, MaybeTensor resets, Tensors masks, int64_t flags) {
    return Stack<Device>({cell, input, std::move(weights), hx, cx, lengths, resets, std::move(masks), flags,
                          Device::kQuantizedElements})
        .forward();
  }

  static Tensors inference(std::string cell, Tensor input, Tensors weights, MaybeTensor hx, MaybeTensor cx,
                           int64_t flags) {
    return forward(std::move(cell), std::move(input), std::move(weights), std::move(hx), std::move(cx), std::nullopt,
                   std::nullopt, {}, flags);
  }

  static Tensors layer_inference(std::string cell, Tensor input, Tensor weight_ih, Tensor weight_hh,
                                 MaybeTensor bias_ih, MaybeTensor bias_hh, MaybeTensor hx, MaybeTensor cx,
                                 int64_t flags) {
    Tensors weights{weight_ih, weight_hh};
    for (const MaybeTensor* bias : {&bias_ih, &bias_hh})
      if (*bias) weights.push_back(**bias);
    return inference(std::move(cell), std::move(input), std::move(weights), std::move(hx), std::move(cx), flags);
  }

  static Tensors backward(MaybeTensor grad_output, MaybeTensor grad_hy, MaybeTensor grad_cy, Tensors kept,
                          std::string cell, Tensor input, Tensors weights, MaybeTensor hx, MaybeTensor cx,
                          MaybeTensor lengths, MaybeTensor resets, Tensors masks, int64_t flags) {
    return Stack<Device>({cell, input, std::move(weights), hx, cx, lengths, resets, std::move(masks), flags,
                          Device::kQuantizedElements})
        .backward(grad_output, grad_hy, grad_cy, std::move(kept));
  }

  template <class Library>
  static void implement(Library& m) {
    m.impl("forward", TORCH_BOX(&forward));
    m.impl("inference", TORCH_BOX(&inference));
    m.impl("backward", TORCH_BOX(&backward));
  }
};

}  // namespace fused_rnn

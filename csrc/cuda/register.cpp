// CUDA implementations of the ops.
#include <torch/csrc/stable/accelerator.h>

#include "../ops.h"
#include "layers.h"

namespace fused_rnn {

Device device_of(const Tensor& x) { return device_at(x.get_device_index()); }

Stream stream_of(const Tensor& x) { return current_stream(x.get_device_index()); }

unsigned* gave_up_word(const Tensor& x) { return gave_up_word(x.get_device_index()); }

std::shared_ptr<void> current_device_guard(const Tensor& x) {
  return std::make_shared<torch::stable::accelerator::DeviceGuard>(x.get_device_index());
}

}  // namespace fused_rnn

STABLE_TORCH_LIBRARY_IMPL(fused_rnn, CUDA, m) { fused_rnn::Ops<fused_rnn::Cuda>::implement(m); }

// A stack of layers that takes a step at a time (fused_rnn/stream.py). Tensors are checked once and their pointers
// kept, so that a step is a plain call of C: to pass PyTorch's dispatcher would take longer than a small step.
#include <torch/csrc/stable/library.h>

#include <exception>
#include <vector>

#include "../call.h"
#include "isa.h"

namespace fused_rnn {
namespace {

class Stream {
 public:
  virtual ~Stream() = default;
  virtual void step(const void* x) = 0;
};

template <class S>
class StreamOf final : public Stream {
 public:
  StreamOf(Call call, const Tensor& outputs)
      : call_(std::move(call)),
        outputs_(outputs),
        loops_(loops_of<S>(call_.cell, factors_of(call_.quantized()), instruction_set(set_of(call_.flags)))),
        layers_(size_t(call_.L)) {
    const int64_t each = call_.B * call_.P;
    for (int64_t k = 0; k < call_.L; ++k) {
      ForwardArgs<S>& args = layers_[size_t(k)];
      // New states take the place of the old ones, which the loops have read before they write.
      call_.fill(args, k, call_.x, data<S>(outputs_) + k * each, call_.states);
      if (k > 0) args.x = args.output - each;
    }
  }

  void step(const void* x) override {
    layers_[0].x = static_cast<const S*>(x);
    for (const ForwardArgs<S>& layer : layers_) loops_.forward(layer);
  }

 private:
  const Call call_;  // keeps the tensors alive
  const Tensor outputs_;
  const CellLoops<S>& loops_;
  std::vector<ForwardArgs<S>> layers_;
};

// A pointer to a stream for input like `input`, [1, B, I]. The states are changed in place, and `outputs`, [L, B, P],
// are those of each layer.
int64_t make_stream(std::string cell, Tensor input, Tensor outputs, Tensors weights, Tensor hx, MaybeTensor cx,
                    int64_t flags) {
  Call call(cell, input, std::move(weights), hx, cx, std::nullopt, std::nullopt, {}, flags, quantized_elements);
  require(call.T == 1 && call.D == 1 && call.has_steps(), "a stream has single steps, and sizes above 0");
  for (const MaybeTensor& state : {MaybeTensor(hx), cx})
    require(!state || state->is_contiguous(), "the states of a stream must be contiguous");
  const std::array<int64_t, 3> shape = {call.L, call.B, call.P};
  check(outputs, {"outputs"}, {shape.data(), shape.size()}, call.dtype, call.input);
  require(outputs.is_contiguous(), "the outputs of a stream must be contiguous");
  return with_storage_type(call.dtype, [&](auto tag) {
    return reinterpret_cast<int64_t>(new StreamOf<typename decltype(tag)::type>(std::move(call), outputs));
  });
}

}  // namespace
}  // namespace fused_rnn

// Called by ctypes. False if memory does not suffice; the states are those of some layers after the step, then.
extern "C" __attribute__((visibility("default"))) bool fused_rnn_step(void* stream, const void* x) {
  try {
    static_cast<fused_rnn::Stream*>(stream)->step(x);
  } catch (const std::exception&) {
    return false;
  }
  return true;
}
extern "C" __attribute__((visibility("default"))) void fused_rnn_free_stream(void* stream) {
  delete static_cast<fused_rnn::Stream*>(stream);
}

STABLE_TORCH_LIBRARY_IMPL(fused_rnn, CPU, m) { m.impl("make_stream", TORCH_BOX(&fused_rnn::make_stream)); }

// A pass of a call on a GPU: chunks of steps, each with library matmuls over all its steps before and after the loop of
// the plan's tier. Everything is enqueued on the current stream; nothing waits for it.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "../stack.h"
#include "blas.h"
#include "kernels.h"
#include "placement.h"
#include "runtime.h"

namespace fused_rnn {

template <class S>
constexpr ScalarType scalar_type() {
  if (std::is_same<S, BFloat16>::value) return ScalarType::BFloat16;
  if (std::is_same<S, Float16>::value) return ScalarType::Half;
  return ScalarType::Float;
}

// Memory of PyTorch's allocator for the time of one op.
template <class S>
class DeviceScratch {
 public:
  DeviceScratch(const Context& context, int64_t n) : tensor_(allocate(context.input, {n}, scalar_type<S>())) {}
  const Tensor& tensor() const { return tensor_; }
  S* get() const { return tensor_.numel() ? data<S>(tensor_) : nullptr; }

 private:
  Tensor tensor_;
};

template <class S>
Math math_of(const Context& context, const Device& device) {
  if (std::is_same<S, BFloat16>::value) return Math::kBFloat16;
  if (std::is_same<S, Float16>::value) return Math::kFloat16;
  return float32_math(context.flags & kReducedPrecision, device.capability);
}

// An array [T, B, P] whose rows are `row` numbers apart.
template <class S>
Tensor rows_at(const Context& context, const S* data, const LayerSizes& sizes, int64_t row) {
  const std::array<int64_t, 3> shape = {sizes.T, sizes.B, sizes.P}, strides = {sizes.B * row, row, 1};
  return torch::stable::from_blob(const_cast<S*>(data), shape, strides, context.input.device(), scalar_type<S>());
}

// The kernels read and write rows without gaps; with two directions those of output are 2 P numbers apart.
template <class S>
bool has_gaps(const LayerArgs<S>& args) {
  return args.output_row != args.P;
}

// Copies an array [T, B, P] to one with another distance between rows.
template <class S>
void copy_rows(const Context& context, const LayerSizes& sizes, const S* from, int64_t from_row, S* to,
               int64_t to_row) {
  Tensor target = rows_at(context, to, sizes, to_row);
  torch::stable::copy_(target, rows_at(context, from, sizes, from_row));
}

// Zeros for the initial states that are not given, for the time of one op.
template <class S>
class InitialStates {
 public:
  InitialStates(const Context& context, const LayerArgs<S>& args)
      : zeros_(context, args.hx ? 0 : args.B * std::max(args.H, args.P)) {
    fill_with_zeros(zeros_.tensor());
  }
  void replace_absent(Steps<S>& steps) const {
    if (zeros_.get()) steps.hx = steps.cx = zeros_.get();
  }

 private:
  DeviceScratch<S> zeros_;
};

// The arguments that kernels of both passes take; all others are zero.
template <class PassSteps, class S>
PassSteps steps_of(const LayerArgs<S>& args, bool down, int begin, int count) {
  PassSteps steps{};
  steps.T = int(args.T), steps.B = int(args.B), steps.H = int(args.H);
  steps.reverse = args.reverse, steps.down = down, steps.lengths = args.lengths;
  steps.resets = args.resets;
  steps.begin = begin, steps.count = count;
  steps.weight_hh = args.weight_hh, steps.hx = args.hx, steps.cx = args.cx;
  return steps;
}

// State that all layers of a call share in a pass: sizes but for I, the plan, the library, the mailbox.
template <class S>
class Pass {
 public:
  Pass(const Context& context, const LayerSizes& sizes, bool backward)
      : context(context),
        device(device_of(context.input)),
        math(math_of<S>(context, device)),
        plan(make_plan({context.cell, math, sizes.T, sizes.B, sizes.H, context.L, context.D, backward,
                        context.flags & kProjected ? sizes.P : 0},
                       device)),
        blas(math),
        kernels(fused_rnn::kernels<S>(context.cell, AllCells{})),
        stream(stream_of(context.input)),
        T(sizes.T),
        B(sizes.B),
        H(sizes.H),
        P(sizes.P),
        GH(context.cell.gates * sizes.H),
        first(context.cell.hidden_rows(sizes.H)),
        mail_(context, is_grid() ? most_groups() * plan.layout.mail_bytes(slots(backward)) / sizeof(float) : 0),
        flags_(context, is_grid() ? most_groups() * plan.layout.flags() : 0),
        gave_up_(gave_up_word(context.input)) {
    if (const std::string reason = why_not(math, device.capability); !reason.empty()) fail(reason);
  }

  const CellTraits& cell() const { return context.cell; }
  bool has_c() const { return cell().states > 1; }
  bool projects() const { return context.flags & kProjected; }
  bool has_two_products() const { return !is_persistent() && (cell().resets_before || projects()); }  // in a step
  bool is_one_chunk() const { return plan.chunk == T; }
  bool is_persistent() const { return plan.tier != Tier::kStepwise; }
  int64_t chunk_rows() const { return plan.chunk * B; }
  // The same steps for kernels of h alone, which may be projected.
  template <class Steps>
  Steps of_h(Steps steps) const {
    steps.H = int(P);
    return steps;
  }

  // Runs layers side by side through all chunks; Layer is ForwardLayer or BackwardLayer. A stacked layer is one chunk
  // behind the one before it.
  template <class Layer, class Args>
  void run_layers(const Layers<Args>& wanted) const {
    std::vector<Layer> layers;
    layers.reserve(wanted.size());
    for (size_t i = 0; i < wanted.size(); ++i) layers.emplace_back(*this, wanted[i], wanted.dropout(i));
    const int64_t count = int64_t(layers.size()), lag = wanted.stacked ? plan.chunk : 0;
    for (int64_t now = 0; now < T + lag * (count - 1); now += plan.chunk) {
      std::vector<const Layer*> active;
      std::vector<typename Layer::Steps> chunks;
      for (int64_t i = 0; i < count; ++i) {
        const int64_t begin = now - lag * i;
        if (begin < 0 || begin >= T) continue;
        active.push_back(&layers[size_t(i)]);
        chunks.push_back(active.back()->steps(int(begin), int(std::min<int64_t>(plan.chunk, T - begin))));
        active.back()->before(chunks.back());
      }
      if (is_persistent())
        run_persistent<Layer>(chunks);
      else
        for (size_t i = 0; i < active.size(); ++i) run_stepwise(*active[i], chunks[i]);
      for (size_t i = 0; i < active.size(); ++i) active[i]->after(chunks[i]);
    }
    for (const Layer& layer : layers) layer.finish();
  }

  const Context& context;
  const std::shared_ptr<void> guard{current_device_guard(context.input)};
  const Device device;
  const Math math;
  const Plan plan;
  const Blas blas;
  const Kernels<S> kernels;
  const Stream stream;
  const int64_t T, B, H, P, GH;
  const int64_t first;  // rows of weight_hh that multiply h itself; the others multiply r * h

 private:
  bool is_grid() const { return plan.tier == Tier::kGrid; }
  int64_t most_groups() const { return int64_t(plan.together) * plan.groups; }  // of a launch
  int slots(bool backward) const { return Layout::slots(backward, cell().gates, cell().resets_before); }

  // Launches a persistent kernel, once for as many layers and rows of the batch as one launch takes.
  template <class Layer>
  void run_persistent(const std::vector<typename Layer::Steps>& steps) const {
    const Mailbox mailbox{reinterpret_cast<unsigned char*>(mail_.get()), reinterpret_cast<unsigned*>(flags_.get()),
                          gave_up_};
    for (size_t begin = 0; begin < steps.size(); begin += size_t(plan.together)) {
      const size_t end = std::min(steps.size(), begin + size_t(plan.together));
      Recurrence<typename Layer::Steps> recurrence{{}, plan.layout, 0, mailbox};
      std::copy(steps.begin() + begin, steps.begin() + end, recurrence.parts);
      for (int64_t row = 0; row < B; row += plan.rows()) {
        if (is_grid()) fill_with_zeros(flags_.tensor());
        recurrence.first_row = int(row);
        const Launch launch{plan, math, int(end - begin), stream};
        check_launch((kernels.*Layer::kKernel)(recurrence, launch), Layer::kName);
      }
    }
  }

  // Every step of a chunk, each a chunk by itself.
  template <class Layer, class Steps>
  static void run_stepwise(const Layer& layer, const Steps& chunk) {
    Steps step = chunk;
    step.count = 1;
    for (step.begin = chunk.begin; step.begin < chunk.begin + chunk.count; ++step.begin)
      layer.run_step(step, chunk.place(chunk.time(step.begin)));
  }

  // A grid's mailbox. Bits, whatever the number type.
  const DeviceScratch<float> mail_, flags_;
  unsigned* const gave_up_;
};

}  // namespace fused_rnn

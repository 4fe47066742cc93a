// Both passes of a call, in one direction or both: layer by layer, or as many at once as the device runs side by side.
// Device::Pass<S>(context, sizes, backward) is a pass of a call on a device: run(layers) runs the loops of some layers,
// and together() is the number of stacked layers that it takes at once. Device::kSavesAccumulated: the forward saves
// values for the backward in the type that it computes in, otherwise in the storage type. Device::kQuantizedElements:
// the size of quantised weights, or null if it takes none.
#pragma once

#include <algorithm>
#include <array>
#include <optional>
#include <type_traits>
#include <vector>

#include "call.h"

namespace fused_rnn {

// Properties of a call, the same for all its layers; ForwardArgs and BackwardArgs hold those of one layer.
struct Context {
  const CellTraits& cell;
  const Tensor& input;  // on the device
  int64_t L, D;
  int64_t flags;  // Flag
};

// Dropout between stacked layers that run side by side: to = from * mask, [T, B, H] each.
struct Masked {
  Tensor from, mask, to;

  // Computes steps [begin, begin + count) of `to`.
  void compute(int64_t begin, int64_t count) const {
    Tensor some[] = {from, mask, to};
    for (Tensor& tensor : some) tensor = torch::stable::narrow(tensor, 0, begin, count);
    std::array<StableIValue, 3> stack;
    std::transform(some, some + 3, stack.begin(), [](const Tensor& t) { return torch::stable::detail::from(t); });
    STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mul", "out", stack.data(), TORCH_ABI_VERSION));
    torch::stable::detail::to<Tensor>(stack[0]);  // which is released
  }
};

// The layers of one run, each in one direction: the directions of one layer, or stacked layers in the order of the
// pass, each of which takes the output (in the backward, the grad_x) of the one before it.
template <class Args>
struct Layers {
  std::vector<Masked> masked;  // of stacked layers with dropout: the input of each layer but the first
  bool stacked = false;
  Tensors alive;  // until the layers have run

  Args& add() { return each_[count_++] = Args{}; }  // of a layer in one direction
  size_t size() const { return count_; }
  const Args& operator[](size_t i) const { return each_[i]; }
  const Args* begin() const { return each_.data(); }
  const Args* end() const { return begin() + count_; }
  Args* begin() { return each_.data(); }
  Args* end() { return begin() + count_; }

  // Dropout before layer i, or null.
  const Masked* dropout(size_t i) const { return i > 0 && !masked.empty() ? &masked[i - 1] : nullptr; }

 private:
  std::array<Args, kMostTogether> each_;  // not a vector: a small call would notice its allocation
  size_t count_ = 0;
};

inline Tensor product(const Tensor& a, const Tensor& b) {
  std::array<StableIValue, 2> stack{torch::stable::detail::from(a), torch::stable::detail::from(b)};
  if (torch_call_dispatcher("aten::mul", "Tensor", stack.data(), TORCH_ABI_VERSION) != AOTI_TORCH_SUCCESS)
    fail_out_of_memory(a.is_cpu(), bytes_of(a.sizes(), a.element_size()),
                       "for a product of " + numbers_text(a.sizes(), a.scalar_type()));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

template <class Device>
class Stack {
 public:
  explicit Stack(Call call)
      : call_(std::move(call)), context_{call_.cell, call_.input, call_.L, call_.D, call_.flags} {}

  // The output and the final states, of a step the states alone. With kSave the tensors for the backward follow: one
  // [T, B, kSaved, H] for each layer and direction, then the output of every layer but the last.
  Tensors forward() const {
    const bool save = call_.has(kSave);
    Tensors results, finals, saved, inner;
    for (int i = 0; i < call_.cell.states; ++i) finals.push_back(call_.allocate(call_.state_shape(size_t(i))));
    if (!call_.has(kStep)) results.push_back(call_.allocate_like_input(call_.width()));
    results.insert(results.end(), finals.begin(), finals.end());
    for (int64_t k = 0; save && k < call_.count(); ++k) saved.push_back(allocate_saved());
    with_storage_type(call_.dtype, [&](auto tag) {
      run_forward<typename decltype(tag)::type>(results[0], finals, saved, save ? &inner : nullptr);
    });
    if (!call_.has_steps())
      for (size_t i = 0; i < finals.size(); ++i)
        pass_on(finals[i], call_.states.empty() ? MaybeTensor() : call_.states[i]);
    results.insert(results.end(), saved.begin(), saved.end());
    results.insert(results.end(), inner.begin(), inner.end());
    return results;
  }

  // The gradients of the input, of each weight, and of the initial states if there are any; empty if not needed.
  // Gradients of results may be absent, which means zero. `kept`: the first result of the forward and its saved
  // tensors.
  Tensors backward(const MaybeTensor& grad_output, MaybeTensor grad_hy, MaybeTensor grad_cy, Tensors kept) const {
    if (grad_hy) prepare(*grad_hy, {"grad_hy"}, call_.state_shape(0), call_.dtype, call_.input);
    if (grad_cy) prepare(*grad_cy, {"grad_cy"}, call_.state_shape(1), call_.dtype, call_.input);
    MaybeTensor grad_y;
    if (grad_output) grad_y = call_.time_major(*grad_output, "grad_output", call_.width());
    prepare_kept(kept);
    const bool needs_input = call_.has(kNeedsInput), needs_weights = call_.has(kNeedsWeights);
    const bool needs_states = call_.has(kNeedsStates);
    Tensors grads;
    grads.push_back(needs_input ? call_.allocate_like_input(call_.I) : call_.allocate({0}));
    for (const Tensor& weight : call_.weights)
      grads.push_back(needs_weights ? call_.allocate(weight.sizes()) : call_.allocate({0}));
    const size_t first_state = grads.size();
    for (size_t i = 0; i < call_.states.size(); ++i)
      grads.push_back(needs_states ? call_.allocate(call_.state_shape(i)) : call_.allocate({0}));
    if (!call_.has_steps()) {
      for (size_t i = 0; i < first_state; ++i) fill_with_zeros(grads[i]);
      for (size_t i = first_state; needs_states && i < grads.size(); ++i)
        pass_on(grads[i], i == first_state ? grad_hy : grad_cy);
      return grads;
    }
    with_storage_type(call_.dtype, [&](auto tag) {
      run_backward<typename decltype(tag)::type>(kept, grad_y, grad_hy, grad_cy, grads);
    });
    return grads;
  }

 private:
  // ---- Tensors ----

  TensorShape shape_between() const { return call_.steps_shape({call_.width()}); }
  Tensor allocate_between() const { return call_.allocate(shape_between()); }
  TensorShape saved_shape() const { return call_.steps_shape({call_.cell.saved, call_.H}); }
  ScalarType saved_type() const { return Device::kSavesAccumulated ? accumulate_type(call_.dtype) : call_.dtype; }
  Tensor allocate_saved() const { return allocate(call_.input, saved_shape(), saved_type()); }
  // `kept` holds the last layer's output, the saved tensor of each layer and direction, and the other outputs.
  static const Tensor& saved_of(int64_t k, const Tensors& kept) { return kept[size_t(1 + k)]; }
  const Tensor& output_of(int64_t layer, const Tensors& kept) const {
    return kept[layer + 1 == call_.L ? 0 : size_t(1 + call_.count() + layer)];
  }

  // The output of a layer, or its gradient, times the layer's mask, if there are masks.
  Tensor masked(const Tensor& y, int64_t layer) const {
    return call_.masks.empty() ? y : product(y, call_.masks[size_t(layer)]);
  }

  // The same for layers that run side by side: the device computes it, step by step.
  template <class Args>
  Tensor masked_later(const Tensor& y, int64_t layer, Layers<Args>& layers) const {
    if (call_.masks.empty()) return y;
    layers.masked.push_back({y, call_.masks[size_t(layer)], allocate_between()});
    return layers.masked.back().to;
  }

  // Where no step takes place, a state stays as it is, and so does its gradient; zeros if there is none.
  static void pass_on(Tensor& to, const MaybeTensor& from) {
    if (from)
      torch::stable::copy_(to, *from);
    else
      fill_with_zeros(to);
  }

  void prepare_kept(Tensors& kept) const {
    const size_t count = size_t(call_.count()), wanted = count + size_t(call_.L);
    require(kept.size() == wanted, "kept must be ", wanted, " tensors, got ", kept.size());
    for (size_t i = 1; i < wanted; ++i)
      if (i <= count)
        prepare(kept[i], {"saved"}, saved_shape(), saved_type(), call_.input);
      else
        prepare(kept[i], {"saved output"}, shape_between(), call_.dtype, call_.input);
    kept[0] = call_.time_major(kept[0], "output", call_.width());
  }

  // ---- Layers ----

  template <class S>
  using Pass = typename Device::template Pass<S>;
  template <class S>
  using Saved = std::conditional_t<Device::kSavesAccumulated, accumulate_t<S>, S>;
  template <class S>
  using LayerForward = ForwardArgs<S, Saved<S>>;
  template <class S>
  using LayerBackward = BackwardArgs<S, Saved<S>>;
  LayerSizes sizes() const { return {call_.T, call_.B, call_.I, call_.H, call_.P, call_.T * call_.B}; }

  template <class S>
  void run_forward(const Tensor& output, const Tensors& finals, const Tensors& saved, Tensors* inner) const {
    std::optional<Pass<S>> pass;
    if (call_.has_steps()) pass.emplace(context_, sizes(), false);
    const int64_t together = pass ? pass->together() : 1;
    Tensor x = call_.x;
    for (int64_t first = 0; first < call_.L; first += together) {
      const int64_t last = std::min(call_.L, first + together) - 1;
      Layers<LayerForward<S>> layers;
      layers.stacked = last > first;
      for (int64_t layer = first; layer <= last; ++layer) {
        const bool is_top = layer + 1 == call_.L;
        const Tensor y = is_top ? output : allocate_between();
        add_forward(layers, layer, x, y, finals, saved);
        if (layers.stacked) layers.alive.push_back(y);
        if (layer == last && pass) pass->run(layers);
        if (is_top) break;
        if (inner) inner->push_back(y);
        x = layer == last ? masked(y, layer) : masked_later(y, layer, layers);
      }
    }
  }

  template <class S>
  void add_forward(Layers<LayerForward<S>>& layers, int64_t layer, const Tensor& x, const Tensor& y,
                   const Tensors& finals, const Tensors& saved) const {
    const int64_t D = call_.D;
    for (int64_t direction = 0; direction < D; ++direction) {
      const int64_t k = layer * D + direction;
      LayerForward<S>& args = layers.add();
      call_.fill(args, k, x, data<S>(y) + direction * call_.P, finals);
      args.saved = saved.empty() ? nullptr : data<Saved<S>>(saved[size_t(k)]);
    }
  }

  template <class S>
  void run_backward(const Tensors& kept, MaybeTensor grad_y, const MaybeTensor& grad_hy, const MaybeTensor& grad_cy,
                    const Tensors& grads) const {
    const Pass<S> pass(context_, sizes(), true);
    const int64_t together = pass.together();
    for (int64_t last = call_.L - 1; last >= 0; last -= together) {
      const int64_t first = std::max<int64_t>(0, last + 1 - together);
      Layers<LayerBackward<S>> layers;
      layers.stacked = last > first;
      for (int64_t layer = last; layer >= first; --layer) {
        const Tensor x = layer ? masked(output_of(layer - 1, kept), layer - 1) : call_.x;
        MaybeTensor grad_x;
        if (layer || call_.has(kNeedsInput)) grad_x = layer ? allocate_between() : grads[0];
        add_backward(layers, layer, x, kept, grad_y, grad_hy, grad_cy, grad_x, grads);
        if (layers.stacked) layers.alive.insert(layers.alive.end(), {x, grad_x.value_or(x)});
        if (layer == first) pass.run(layers);
        if (layer) grad_y = layer == first ? masked(*grad_x, layer - 1) : masked_later(*grad_x, layer - 1, layers);
      }
    }
  }

  template <class S>
  void add_backward(Layers<LayerBackward<S>>& layers, int64_t layer, const Tensor& x, const Tensors& kept,
                    const MaybeTensor& grad_y, const MaybeTensor& grad_hy, const MaybeTensor& grad_cy,
                    const MaybeTensor& grad_x, const Tensors& grads) const {
    const int64_t D = call_.D;
    for (int64_t direction = 0; direction < D; ++direction) {
      const int64_t k = layer * D + direction, each = call_.weights_each();
      const auto grad_of_weight = [&](int64_t i, bool is_there = true) {
        return call_.has(kNeedsWeights) && is_there ? data<S>(grads[size_t(1 + k * each + i)]) : nullptr;
      };
      const auto at = [&](size_t i) { return k * call_.B * call_.state_size(i); };  // in state i
      const auto grad_of_state = [&](size_t i) {
        const size_t states = call_.states.size();
        return call_.has(kNeedsStates) && i < states ? data<S>(grads[grads.size() - states + i]) + at(i) : nullptr;
      };
      LayerBackward<S>& args = layers.add();
      call_.fill(args, k, x);
      args.grad_output = grad_y ? const_data<S>(*grad_y) + direction * call_.P : nullptr;
      args.grad_hy = grad_hy ? const_data<S>(*grad_hy) + at(0) : nullptr;
      args.grad_cy = grad_cy ? const_data<S>(*grad_cy) + at(1) : nullptr;
      args.output = const_data<S>(output_of(layer, kept)) + direction * call_.P;
      args.saved = const_data<Saved<S>>(saved_of(k, kept));
      args.grad_x = grad_x ? data<S>(*grad_x) : nullptr;
      args.adds_grad_x = direction > 0;
      args.grad_weight_ih = grad_of_weight(0);
      args.grad_weight_hh = grad_of_weight(1);
      args.grad_bias_ih = grad_of_weight(2, call_.has(kBias));
      args.grad_bias_hh = grad_of_weight(3, call_.has(kBias));
      args.grad_weight_hr = grad_of_weight(each - 1, call_.has(kProjected));
      args.grad_hx = grad_of_state(0);
      args.grad_cx = grad_of_state(1);
    }
  }

  const Call call_;
  const Context context_;
};

}  // namespace fused_rnn

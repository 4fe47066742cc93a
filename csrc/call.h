// The tensors of a call, checked, and the sizes that follow from their shapes. A call runs layers on top of each other,
// in one direction or both.
#pragma once

#include <algorithm>
#include <array>
#include <string>
#include <utility>
#include <vector>

#include "cell_traits.h"
#include "ragged.h"
#include "recurrence.h"
#include "tensors.h"

namespace fused_rnn {

using Tensors = std::vector<Tensor>;

// The bits of the schema's `flags`, as in fused_rnn/call.py.
enum Flag : int64_t {
  kBias = 1,               // there are bias_ih and bias_hh
  kBidirectional = 2,      // every layer has two directions
  kReverse = 4,            // the first direction runs from the last step to the first
  kBatchFirst = 8,         // input and output are [B, T, ...]
  kStep = 16,              // one step of a cell: input [B, I], states [B, H]
  kReducedPrecision = 32,  // float32 products may round their factors: to TF32 on a GPU, to bfloat16 on a CPU
  kSave = 64,              // a backward will come
  kNeedsInput = 128,       // the backward gives the gradient of the input
  kNeedsWeights = 256,     // and those of the weights
  kPacked = 512,           // input and output are the data [N, ...] of a packed sequence; `lengths` are its batch_sizes
  kNeedsStates = 1024,     // the backward gives the gradients of the initial states
  kInt8 = 2048             // weights are int8 panels, which follow the biases; in their place stand their rows' scales
};

// The size of the panels of an int8 weight [G*H, K] on a device.
using Int8Panels = int64_t (*)(const CellTraits& cell, int64_t K, int64_t H);

// Up to four sizes.
struct TensorShape {
  std::array<int64_t, 4> sizes{};
  size_t rank = 0;

  void append(int64_t size) { sizes.at(rank++) = size; }
  operator Sizes() const { return {sizes.data(), rank}; }
};

class Call {
 public:
  Call(const std::string& cell_name, const Tensor& input, Tensors weights, const MaybeTensor& hx, const MaybeTensor& cx,
       const MaybeTensor& lengths, Tensors masks, int64_t flags, Int8Panels int8_panels)
      : cell(cell_named(cell_name)),
        flags(flags),
        input(defined(input)),
        weights(std::move(weights)),
        int8_panels_(int8_panels) {
    read_steps(lengths);
    read_sizes();
    if (!has(kStep)) state_shape_.append(count());
    if (is_batched_) state_shape_.append(B);
    state_shape_.append(H);
    prepare_weights();
    prepare_states(hx, cx);
    if (lengths && !has(kPacked)) ragged_.read_lengths(*lengths, T, B, input);
    if (!masks.empty()) prepare_masks(std::move(masks));
    x = in_time_order(input);  // maybe a large copy, so after the checks
    if (has_steps() && !has(kPacked)) ragged_.count_active(T);
  }

  bool has(Flag flag) const { return flags & flag; }
  int64_t count() const { return L * D; }  // of layers and directions
  int64_t width() const { return D * H; }  // of a layer's output
  int64_t input_size(int64_t layer) const { return layer ? width() : I; }
  bool has_steps() const { return T > 0 && B > 0 && H > 0; }

  const TensorShape& state_shape() const { return state_shape_; }

  // [T, B, ...], of a packed sequence [N, ...].
  TensorShape steps_shape(std::initializer_list<int64_t> each) const {
    TensorShape shape;
    if (has(kPacked)) {
      shape.append(input.size(0));
    } else {
      shape.append(T);
      shape.append(B);
    }
    for (const int64_t size : each) shape.append(size);
    return shape;
  }

  Tensor allocate(Sizes shape) const { return fused_rnn::allocate(input, shape, dtype); }

  // A tensor like the input, with `width` numbers for each step and row. Its memory is in the order of the loops; that
  // makes it strided, where a transposed view could not be detached or changed in place.
  Tensor allocate_like_input(int64_t width) const {
    const int64_t row = std::max<int64_t>(1, width);
    const std::array<int64_t, 3> strides = {row, std::max<int64_t>(1, B) * row, 1};
    return fused_rnn::allocate(input, shape_like_input(width), dtype, batch_leads_ ? strides.data() : nullptr);
  }

  // Such a tensor in the memory order of the loops: [T, B, width].
  Tensor time_major(const Tensor& tensor, const char* name, int64_t width) const {
    check(tensor, {name}, shape_like_input(width), dtype, input);
    return in_time_order(tensor);
  }

  // The arguments of layer and direction k, but for the biases.
  template <class S>
  void fill(LayerArgs<S>& args, int64_t k, const Tensor& layer_input) const {
    args.T = T, args.B = B, args.I = input_size(k / D), args.H = H;
    args.output_row = width();
    args.reverse = has(kReverse) != (k % D == 1);
    ragged_.fill(args);
    args.x = const_data<S>(layer_input);
    if (has(kInt8)) {
      const int64_t panels = weights_each() - 2;
      args.int8_ih = {const_data<int8_t>(weight(k, panels)), const_data<float>(weight(k, 0))};
      args.int8_hh = {const_data<int8_t>(weight(k, panels + 1)), const_data<float>(weight(k, 1))};
    } else {
      args.weight_ih = const_data<S>(weight(k, 0));
      args.weight_hh = const_data<S>(weight(k, 1));
    }
    args.hx = states.empty() ? nullptr : const_data<S>(states[0]) + k * B * H;
    args.cx = states.size() < 2 ? nullptr : const_data<S>(states[1]) + k * B * H;
  }

  // The same and the rest of a forward, which writes its output from `output` on and its final states into `finals`,
  // which have the shape of `states`.
  template <class S, class Saved>
  void fill(ForwardArgs<S, Saved>& args, int64_t k, const Tensor& layer_input, S* output, const Tensors& finals) const {
    fill(args, k, layer_input);
    args.bias_ih = has(kBias) ? const_data<S>(weight(k, 2)) : nullptr;
    args.bias_hh = has(kBias) ? const_data<S>(weight(k, 3)) : nullptr;
    args.output = output;
    args.hy = data<S>(finals[0]) + k * B * H;
    args.cy = finals.size() > 1 ? data<S>(finals[1]) + k * B * H : nullptr;
  }

  // weight_ih, weight_hh, bias_ih, bias_hh; or scale_ih, scale_hh, bias_ih, bias_hh, weight_ih, weight_hh
  int64_t weights_each() const { return 2 + (has(kBias) ? 2 : 0) + (has(kInt8) ? 2 : 0); }
  const Tensor& weight(int64_t k, int64_t i) const { return weights[size_t(k * weights_each() + i)]; }

  const CellTraits& cell;
  const int64_t flags;  // Flag
  const Tensor input;
  const ScalarType dtype = input.scalar_type();
  Tensors weights, states, masks;
  Tensor x;  // [T, B, I]
  int64_t L, D, T, B, I, H;

 private:
  static const Tensor& defined(const Tensor& input) {
    require(input.defined(), "input must be a tensor, got None");
    return input;
  }

  // T, B and I.
  void read_steps(const MaybeTensor& lengths) {
    const int64_t dims = input.dim(), batched = has(kStep) || has(kPacked) ? 2 : 3;
    is_batched_ = dims == batched;
    if (!is_batched_ && (dims != batched - 1 || has(kPacked))) {
      const char* const forms = has(kPacked)       ? "[N, I]"
                                : has(kStep)       ? "[B, I] or [I]"
                                : has(kBatchFirst) ? "[B, T, I] or [T, I]"
                                                   : "[T, B, I] or [T, I]";
      fail("input must be ", forms, ", got ", shape_text(input.sizes()));
    }
    I = input.size(dims - 1);
    if (has(kPacked)) {
      require(!has(kStep), "a single step has no packed sequence");
      ragged_.read_batch_sizes(lengths, input);
      T = ragged_.T(), B = ragged_.B();
      return;
    }
    batch_leads_ = is_batched_ && has(kBatchFirst) && !has(kStep);
    T = has(kStep) ? 1 : input.size(batch_leads_ ? 1 : 0);
    B = is_batched_ ? input.size(batch_leads_ || has(kStep) ? 0 : 1) : 1;
  }

  void read_sizes() {
    D = has(kBidirectional) ? 2 : 1;
    const int64_t given = int64_t(weights.size()), each = D * weights_each();
    require(given > 0 && given % each == 0, "weights must be ", each, " for each layer, got ", given);
    L = given / each;
    require(!has(kStep) || count() == 1, "a single step has one layer and one direction, got ", count());

    if (has(kInt8)) return read_int8_sizes();
    const Tensor& weight_hh = weights[1];
    const auto got = weight_hh.defined() ? weight_hh.sizes() : Sizes();
    const bool fits = got.size() == 2 && got[0] % cell.gates == 0 && got[0] / cell.gates == got[1];
    if (!fits)
      fail(Name{"weight_hh", has(kStep) ? -1 : 0}.text(), " must be [G*H, H] with G = ", cell.gates, ", got ",
           shape_text(got));
    H = got[1];
  }

  void read_int8_sizes() {
    require(int8_panels_ && input.is_cpu() && dtype == ScalarType::Float,
            "int8 weights need an input of float32 on cpu, got ", dtype_text(dtype), " on ", device_text(input));
    require(!has(kSave), "int8 weights have no gradient");
    const Tensor& scale = weights[1];
    const auto got = scale.defined() ? scale.sizes() : Sizes();
    if (got.size() != 1 || got[0] % cell.gates)
      fail(Name{"scale_hh", has(kStep) ? -1 : 0}.text(), " must be [G*H] with G = ", cell.gates, ", got ",
           shape_text(got));
    H = got[0] / cell.gates;
    constexpr int64_t kMost = int64_t(1) << 17;  // products of two int8 whose sum is sure to fit into int32
    for (const int64_t size : {I, D * H})
      require(size <= kMost, "int8 weights have at most ", kMost, " columns, got ", size);
  }

  void prepare_weights() {
    constexpr const char* kNames[] = {"weight_ih", "weight_hh", "bias_ih", "bias_hh"};
    constexpr const char* kInt8Names[] = {"scale_ih", "scale_hh", "bias_ih", "bias_hh", "weight_ih", "weight_hh"};
    const int64_t rows = cell.gates * H;
    for (size_t i = 0; i < weights.size(); ++i) {
      const int64_t k = int64_t(i) / weights_each(), layer = k / D, kind = int64_t(i) % weights_each();
      const int64_t columns = kind % 2 == 0 ? input_size(layer) : H;
      const bool is_panels = has(kInt8) && kind >= weights_each() - 2;
      const char* const text = !has(kInt8) ? kNames[kind] : kInt8Names[is_panels ? kind - weights_each() + 6 : kind];
      const Name name{text, has(kStep) ? -1 : layer, k % D};
      if (is_panels) {
        prepare(weights[i], name, {int8_panels_(cell, columns, H)}, ScalarType::Char, input);
      } else {
        const std::array<int64_t, 2> shape = {rows, columns};
        prepare(weights[i], name, {shape.data(), kind < 2 && !has(kInt8) ? size_t(2) : size_t(1)}, dtype, input);
      }
    }
  }

  void prepare_states(const MaybeTensor& hx, const MaybeTensor& cx) {
    const bool fits = cell.states > 1 ? hx.has_value() == cx.has_value() : !cx;
    if (!fits) fail(cell.name, cell.states > 1 ? " has hx and cx: both or neither must be given" : " has no cx");
    for (const MaybeTensor* state : {&hx, &cx})
      if (*state) {
        states.push_back(**state);
        prepare(states.back(), {states.size() > 1 ? "cx" : "hx"}, state_shape(), dtype, input);
      }
  }

  void prepare_masks(Tensors given) {
    require(int64_t(given.size()) == L - 1, "masks must be ", L - 1, ", one for each layer but the last, got ",
            given.size());
    for (Tensor& mask : given) prepare(mask, {"mask"}, steps_shape({width()}), dtype, input);
    masks = std::move(given);
  }

  TensorShape shape_like_input(int64_t width) const {
    TensorShape shape;
    for (const int64_t size : input.sizes()) shape.append(size);
    shape.sizes[shape.rank - 1] = width;
    return shape;
  }

  Tensor in_time_order(const Tensor& tensor) const {
    if (!has_steps()) return tensor;  // nothing will read it, and an expanded tensor may be too large for a copy
    // With one step or one row, both orders are the same memory.
    return as_contiguous(batch_leads_ && T > 1 && B > 1 ? torch::stable::transpose(tensor, 0, 1) : tensor);
  }

  Int8Panels int8_panels_;  // null: the device takes no int8 weights
  bool is_batched_;
  bool batch_leads_ = false;  // input and output are [B, T, ...]
  TensorShape state_shape_;
  Ragged ragged_;
};

}  // namespace fused_rnn

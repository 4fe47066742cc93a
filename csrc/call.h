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
  kBias = 1,                // there are bias_ih and bias_hh
  kBidirectional = 2,       // every layer has two directions
  kReverse = 4,             // the first direction runs from the last step to the first
  kBatchFirst = 8,          // input and output are [B, T, ...]
  kStep = 16,               // one step of a cell: input [B, I], states [B, H]
  kReducedPrecision = 32,   // float32 products may round their factors: to TF32 on a GPU, to bfloat16 on a CPU
  kSave = 64,               // a backward will come
  kNeedsInput = 128,        // the backward gives the gradient of the input
  kNeedsWeights = 256,      // and those of the weights
  kPacked = 512,            // input and output are the data [N, ...] of a packed sequence, `lengths` its batch_sizes
  kNeedsStates = 1024,      // the backward gives the gradients of the initial states
  kInt8 = 2048,             // weights are panels of int8, with scales
  kBFloat16Weights = 4096,  // weights are panels of bfloat16, as int16, and there are biases
  kProjected = 8192,        // h is projected: weight_hr follows the other weights of each layer and direction
  // How the CPU kernels run the call, where a user's own measurement says so; without these bits they decide.
  kJoins = 1 << 16,     // x and h are multiplied in one tile
  kProjects = 1 << 17,  // x is projected before
  kSet = 1 << 18        // times the number of an instruction set, from 1
};

inline Quantized quantized_of(int64_t flags) {
  return flags & kInt8 ? Quantized::kInt8 : flags & kBFloat16Weights ? Quantized::kBFloat16 : Quantized::kNone;
}

// The number of an instruction set; quantised weights are laid out for that of the process.
inline int64_t set_of(int64_t flags) { return quantized_of(flags) == Quantized::kNone ? flags / kSet : 0; }

// The numbers in the panels of a weight [G*H, K] on a device.
using QuantizedElements = int64_t (*)(const CellTraits& cell, Quantized type, int64_t K, int64_t H);

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
       const MaybeTensor& lengths, const MaybeTensor& resets, Tensors masks, int64_t flags,
       QuantizedElements quantized_elements)
      : cell(cell_named(cell_name)),
        flags(flags),
        input(defined(input)),
        weights(std::move(weights)),
        quantized_elements_(quantized_elements) {
    read_steps(lengths);
    read_sizes();
    prepare_weights();
    prepare_states(hx, cx);
    if (lengths && !has(kPacked)) ragged_.read_lengths(*lengths, T, B, input);
    require(!resets || !(has(kPacked) || has(kStep)),
            "resets are for padded sequences, not for a packed one or a single step");
    if (resets) ragged_.read_resets(*resets, T, B, input);
    if (!masks.empty()) prepare_masks(std::move(masks));
    x = in_time_order(input);  // maybe a large copy, so after the checks
    if (has_steps() && !has(kPacked)) ragged_.count_active(T);
  }

  bool has(Flag flag) const { return flags & flag; }
  Quantized quantized() const { return quantized_of(flags); }
  int64_t count() const { return L * D; }  // of layers and directions
  int64_t width() const { return D * P; }  // of a layer's output
  int64_t input_size(int64_t layer) const { return layer ? width() : I; }
  bool has_steps() const { return T > 0 && B > 0 && H > 0; }

  int64_t state_size(size_t i) const { return i == 0 ? P : H; }  // numbers of h, and of c

  // Of h, and of c.
  TensorShape state_shape(size_t i) const {
    TensorShape shape;
    if (!has(kStep)) shape.append(count());
    if (is_batched_) shape.append(B);
    shape.append(state_size(i));
    return shape;
  }

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
    args.T = T, args.B = B, args.I = input_size(k / D), args.H = H, args.P = P;
    args.output_row = width();
    args.reverse = has(kReverse) != (k % D == 1);
    args.joining = has(kJoins) ? Joining::kAlways : has(kProjects) ? Joining::kNever : Joining::kByRows;
    ragged_.fill(args);
    args.x = const_data<S>(layer_input);
    if (quantized() == Quantized::kNone) {
      args.weight_ih = const_data<S>(weight(k, 0));
      args.weight_hh = const_data<S>(weight(k, 1));
    } else {
      args.quantized_ih = quantized_weight(k, 0);
      args.quantized_hh = quantized_weight(k, 1);
    }
    args.weight_hr = has(kProjected) ? const_data<S>(weight(k, weights_each() - 1)) : nullptr;
    args.hx = states.empty() ? nullptr : const_data<S>(states[0]) + k * B * P;
    args.cx = states.size() < 2 ? nullptr : const_data<S>(states[1]) + k * B * H;
  }

  // The same and the rest of a forward, which writes its output from `output` on and its final states into `finals`,
  // which have the shape of `states`.
  template <class S, class Saved>
  void fill(ForwardArgs<S, Saved>& args, int64_t k, const Tensor& layer_input, S* output, const Tensors& finals) const {
    fill(args, k, layer_input);
    const int64_t biases = quantized() == Quantized::kBFloat16 ? 0 : 2;
    args.bias_ih = has(kBias) ? const_data<S>(weight(k, biases)) : nullptr;
    args.bias_hh = has(kBias) ? const_data<S>(weight(k, biases + 1)) : nullptr;
    args.output = output;
    args.hy = data<S>(finals[0]) + k * B * P;
    args.cy = finals.size() > 1 ? data<S>(finals[1]) + k * B * H : nullptr;
  }

  // weight_ih, weight_hh and, if there are, bias_ih, bias_hh, weight_hr; where weights are panels, they come last, and
  // before all else the scales of int8, scale_ih and scale_hh
  int64_t weights_each() const {
    return 2 + (has(kBias) ? 2 : 0) + (has(kProjected) ? 1 : 0) + (quantized() == Quantized::kInt8 ? 2 : 0);
  }
  const Tensor& weight(int64_t k, int64_t i) const { return weights[size_t(k * weights_each() + i)]; }

  const CellTraits& cell;
  const int64_t flags;  // Flag
  const Tensor input;
  const ScalarType dtype = input.scalar_type();
  Tensors weights, states, masks;
  Tensor x;                     // [T, B, I]
  int64_t L, D, T, B, I, H, P;  // P: numbers of h, of the projection or H

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

    require(!has(kProjected) || cell.projects, cell.name, " has no projection");
    if (quantized() != Quantized::kNone) return read_quantized_sizes();
    const Tensor& weight_hh = weights[1];
    const auto got = weight_hh.defined() ? weight_hh.sizes() : Sizes();
    const bool is_matrix = got.size() == 2 && got[0] % cell.gates == 0;
    const bool fits = is_matrix && (has(kProjected) ? got[0] > 0 && got[1] > 0 : got[0] / cell.gates == got[1]);
    if (!fits)
      fail(name(1).text(),
           has(kProjected) ? " must be [G*H, P], above 0, with G = " : " must be [G*H, H] with G = ", cell.gates,
           ", got ", shape_text(got));
    H = got[0] / cell.gates, P = got[1];
  }

  // From the size of bias_hh or scale_hh.
  void read_quantized_sizes() {
    const bool is_int8 = quantized() == Quantized::kInt8;
    const char* const kind = is_int8 ? "int8" : "bfloat16";
    require(quantized_elements_ && input.is_cpu() && dtype == ScalarType::Float, kind,
            " weights need an input of float32 on cpu, got ", dtype_text(dtype), " on ", device_text(input));
    require(!has(kSave), kind, " weights have no gradient");
    require(!has(kProjected), kind, " weights have no projection");
    require(is_int8 || has(kBias), "bfloat16 weights come with biases");
    const Tensor& vector = weights[1];
    const auto got = vector.defined() ? vector.sizes() : Sizes();
    if (got.size() != 1 || got[0] % cell.gates)
      fail(name(1).text(), " must be [G*H] with G = ", cell.gates, ", got ", shape_text(got));
    H = P = got[0] / cell.gates;
    constexpr int64_t kMost = int64_t(1) << 17;  // products of two int8 whose sum is sure to fit into int32
    for (const int64_t size : {I, D * H})
      require(!is_int8 || size <= kMost, "int8 weights have at most ", kMost, " columns, got ", size);
  }

  // Of the weights of a layer in one direction, the place of weight_ih, which weight_hh follows.
  int64_t first_matrix() const { return quantized() == Quantized::kNone ? 0 : weights_each() - 2; }
  // 0 if weight i is a weight_ih, 1 a weight_hh, 2 a weight_hr, -1 if it is a vector.
  int64_t matrix(size_t i) const {
    const int64_t place = int64_t(i) % weights_each() - first_matrix();
    if (has(kProjected) && place == weights_each() - 1) return 2;
    return place == 0 || place == 1 ? place : -1;
  }

  // weight_ih or weight_hh of layer and direction k, in panels.
  QuantizedWeight quantized_weight(int64_t k, int64_t i) const {
    const Tensor& panels = weight(k, first_matrix() + i);
    if (quantized() == Quantized::kBFloat16) return {const_data<int16_t>(panels), nullptr};
    return {const_data<int8_t>(panels), const_data<float>(weight(k, i))};
  }

  void prepare_weights() {
    const int64_t rows = cell.gates * H;
    for (size_t i = 0; i < weights.size(); ++i) {
      const int64_t layer = int64_t(i) / weights_each() / D, columns = matrix(i) == 0 ? input_size(layer) : P;
      if (matrix(i) < 0)
        prepare(weights[i], name(i), {rows}, dtype, input);
      else if (matrix(i) == 2)
        prepare(weights[i], name(i), {P, H}, dtype, input);
      else if (quantized() == Quantized::kNone)
        prepare(weights[i], name(i), {rows, columns}, dtype, input);
      else
        prepare(weights[i], name(i), {quantized_elements_(cell, quantized(), columns, H)},
                quantized() == Quantized::kInt8 ? ScalarType::Char : ScalarType::Short, input);
    }
  }

  // Of weight i.
  Name name(size_t i) const {
    constexpr const char* kNames[] = {"scale_ih",  "scale_hh",  "bias_ih",  "bias_hh",
                                      "weight_ih", "weight_hh", "weight_hr"};
    const int64_t k = int64_t(i) / weights_each();
    const int64_t vector = int64_t(i) % weights_each() + (quantized() == Quantized::kBFloat16 ? 2 : 0);
    return {kNames[matrix(i) < 0 ? vector : 4 + matrix(i)], has(kStep) ? -1 : k / D, k % D};
  }

  void prepare_states(const MaybeTensor& hx, const MaybeTensor& cx) {
    const bool fits = cell.states > 1 ? hx.has_value() == cx.has_value() : !cx;
    if (!fits) fail(cell.name, cell.states > 1 ? " has hx and cx: both or neither must be given" : " has no cx");
    for (const MaybeTensor* state : {&hx, &cx})
      if (*state) {
        states.push_back(**state);
        prepare(states.back(), {states.size() > 1 ? "cx" : "hx"}, state_shape(states.size() - 1), dtype, input);
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

  QuantizedElements quantized_elements_;  // null: the device takes no quantised weights
  bool is_batched_;
  bool batch_leads_ = false;  // input and output are [B, T, ...]
  Ragged ragged_;
};

}  // namespace fused_rnn

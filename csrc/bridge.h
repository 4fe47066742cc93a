// From tensors to arguments: checks, allocation, the choice of the storage type. Nothing here depends on the device; a
// device is a function that runs prepared arguments. Only .cpp files that talk to torch include this.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/HeaderOnlyArrayRef.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "cell_kind.h"
#include "recurrence.h"

namespace fused_rnn {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

// ---- Checks: wanted and got, in words ----

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

// The parts are computed even where the condition holds, so a text of a shape is not one of them.
template <class... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) fail(parts...);
}

// Where a schema wants a tensor, Python's None arrives as an undefined one.
inline void require_defined(const Tensor& tensor, const char* name) {
  if (!tensor.defined()) fail(name, " must be a tensor, got None");
}

inline std::string shape_text(Sizes sizes) {
  std::ostringstream text;
  text << "[";
  for (size_t i = 0; i < sizes.size(); ++i) text << (i ? ", " : "") << sizes[i];
  text << "]";
  return text.str();
}

inline void check_shape(const Tensor& tensor, const char* name, Sizes wanted) {
  const Sizes got = tensor.sizes();
  bool same = got.size() == wanted.size();
  for (size_t i = 0; same && i < wanted.size(); ++i) same = got[i] == wanted[i];
  if (!same) fail(name, " must be ", shape_text(wanted), ", got ", shape_text(got));
}

// Tools that look for a smaller batch recognise these beginnings, which are those of PyTorch's own messages.
[[noreturn]] inline void fail_out_of_memory(bool is_cpu, int64_t bytes, const std::string& purpose) {
  fail(is_cpu ? "DefaultCPUAllocator: can't allocate memory: you tried to allocate "
              : "CUDA out of memory. Tried to allocate ",
       bytes, " bytes, ", purpose);
}

inline std::string numbers_text(Sizes shape, ScalarType dtype) {
  std::ostringstream text;
  text << shape_text(shape) << " numbers of dtype " << dtype;
  return text.str();
}

// The number of bytes of a tensor of that shape, or the largest number there is.
inline int64_t bytes_of(Sizes shape, int64_t element_size) {
  int64_t bytes = element_size;
  for (const int64_t size : shape)
    if (__builtin_mul_overflow(bytes, size, &bytes)) return INT64_MAX;
  return bytes;
}

inline Tensor as_contiguous(const Tensor& tensor) {
  if (tensor.is_contiguous()) return tensor;  // the op costs half a microsecond
  try {
    return torch::stable::contiguous(tensor);
  } catch (const std::exception&) {  // the stable ABI's own message is a line of its source
    fail_out_of_memory(tensor.is_cpu(), bytes_of(tensor.sizes(), tensor.element_size()),
                       "for a contiguous copy of " + numbers_text(tensor.sizes(), tensor.scalar_type()));
  }
}

// `tensor`, contiguous, after checking that it has the shape, and the dtype and device of `like`.
inline Tensor prepared(const Tensor& tensor, const char* name, Sizes shape, const Tensor& like) {
  check_shape(tensor, name, shape);
  require(tensor.scalar_type() == like.scalar_type(), name, " must have dtype ", like.scalar_type(), " like x, got ",
          tensor.scalar_type());
  require(tensor.device() == like.device(), name, " must be on the device of x");
  return as_contiguous(tensor);
}

inline MaybeTensor prepared(const MaybeTensor& tensor, const char* name, Sizes shape, const Tensor& like) {
  if (!tensor) return std::nullopt;
  return prepared(*tensor, name, shape, like);
}

// ---- The storage type ----

template <class S>
struct TypeTag {
  using type = S;
};

// Every dtype that has a kernel stands in this list and nowhere else in C++.
template <class F>
auto with_storage_type(ScalarType dtype, F&& f) {
  switch (dtype) {
    case ScalarType::Float: return f(TypeTag<float>());
    case ScalarType::Double: return f(TypeTag<double>());
    case ScalarType::BFloat16: return f(TypeTag<BFloat16>());
    case ScalarType::Half: return f(TypeTag<Float16>());
    default: break;
  }
  fail("fused_rnn has kernels for float32, float64, bfloat16 and float16, got ", dtype);
}

inline int64_t element_size(ScalarType dtype) {
  return with_storage_type(dtype, [](auto tag) { return int64_t(sizeof(typename decltype(tag)::type)); });
}

inline ScalarType accumulate_type(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

template <class S>
S* data(const Tensor& tensor) {
  return static_cast<S*>(tensor.mutable_data_ptr());
}

template <class S>
const S* const_data(const Tensor& tensor) {
  return static_cast<const S*>(tensor.const_data_ptr());
}

template <class S>
const S* const_data(const MaybeTensor& tensor) {
  return tensor ? const_data<S>(*tensor) : nullptr;
}

// ---- Allocation ----

// PyTorch's op, or on the CPU the function behind it: a streaming step allocates four times.
inline Tensor new_empty(const Tensor& x, Sizes shape, ScalarType dtype, const int64_t* strides) {
  if (!x.is_cpu()) return torch::stable::new_empty(x, shape, dtype);
  std::array<int64_t, 4> contiguous;  // of no more dimensions than any of ours has
  if (!strides) {
    int64_t stride = 1;
    for (size_t i = shape.size(); i-- > 0; stride *= shape[i] > 1 ? shape[i] : 1) contiguous.at(i) = stride;
    strides = contiguous.data();
  }
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(int64_t(shape.size()), shape.data(), strides,
                               torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)),
                               aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

// In a build for tests: fills a new tensor with NaN.
inline void poison(Tensor& tensor) {
#ifdef FUSED_RNN_POISON
  if (!tensor.is_cpu()) {
    torch::stable::fill_(tensor, std::nan(""));
    return;
  }
  with_storage_type(tensor.scalar_type(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    S* const numbers = data<S>(tensor);
    for (int64_t i = 0; i < tensor.numel(); ++i) numbers[i] = S(std::nanf(""));
  });
#else
  (void)tensor;
#endif
}

// A new tensor of x's device and of `dtype`, contiguous or on the CPU with the given strides; in a build for tests it
// is full of NaN.
inline Tensor allocate(const Tensor& x, Sizes shape, ScalarType dtype, const int64_t* strides = nullptr) {
  try {
    require(bytes_of(shape, element_size(dtype)) < INT64_MAX, "more bytes than can be counted");
    Tensor tensor = new_empty(x, shape, dtype, strides);
    poison(tensor);
    return tensor;
  } catch (const std::exception&) {  // the stable ABI's own message is a line of its source
    fail_out_of_memory(x.is_cpu(), bytes_of(shape, element_size(dtype)), "for " + numbers_text(shape, dtype));
  }
}

// ---- One layer in one direction ----

inline int64_t hidden_size(CellKind cell, const Tensor& weight_hh) {
  const bool fits = weight_hh.dim() == 2 && weight_hh.size(0) % gates(cell) == 0 &&
                    weight_hh.size(0) / gates(cell) == weight_hh.size(1);  // a product could overflow
  if (!fits) fail("weight_hh must be [G*H, H] with G = ", gates(cell), ", got ", shape_text(weight_hh.sizes()));
  return weight_hh.size(1);
}

// The tensors of a layer, checked and contiguous.
struct Layer {
  CellKind cell;
  Tensor x, weight_ih, weight_hh;
  MaybeTensor bias_ih, bias_hh;
  Tensor hx;
  MaybeTensor cx, lengths;
  int64_t T, B, I, H;

  Layer(CellKind cell, const Tensor& x_, const Tensor& weight_ih_, const Tensor& weight_hh_,
        const MaybeTensor& bias_ih_, const MaybeTensor& bias_hh_, const Tensor& hx_, const MaybeTensor& cx_,
        const MaybeTensor& lengths_)
      : cell(cell), x(x_), weight_ih(weight_ih_), weight_hh(weight_hh_), hx(hx_) {
    require_defined(x, "x");
    if (x.dim() != 3) fail("x must be [T, B, I], got ", shape_text(x.sizes()));
    T = x.size(0), B = x.size(1), I = x.size(2), H = hidden_size(cell, weight_hh);
    const int64_t rows = gates(cell) * H;
    x = as_contiguous(x);
    weight_ih = prepared(weight_ih, "weight_ih", {rows, I}, x);
    weight_hh = prepared(weight_hh, "weight_hh", {rows, H}, x);
    bias_ih = prepared(bias_ih_, "bias_ih", {rows}, x);
    bias_hh = prepared(bias_hh_, "bias_hh", {rows}, x);
    hx = prepared(hx, "hx", {B, H}, x);
    cx = prepared(cx_, "cx", {B, H}, x);
    if (lengths_) {
      check_shape(*lengths_, "lengths", {B});
      require(lengths_->scalar_type() == ScalarType::Long, "lengths must have dtype int64, got ",
              lengths_->scalar_type());
      require(lengths_->device() == x.device(), "lengths must be on the device of x");
      lengths = as_contiguous(*lengths_);
      if (x.is_cpu())
        for (int64_t b = 0; b < B; ++b) {
          const int64_t length = const_data<int64_t>(*lengths)[b];
          require(0 <= length && length <= T, "lengths[", b, "] must be from 0 to T = ", T, ", got ", length);
        }
    }
  }

  Tensor allocate(Sizes shape) const { return fused_rnn::allocate(x, shape, x.scalar_type()); }
  std::array<int64_t, 4> saved_shape() const { return {T, B, saved_per_unit(cell), H}; }

  template <class S>
  void fill(LayerArgs<S>& args, bool reverse) const {
    args.T = T, args.B = B, args.I = I, args.H = H;
    args.reverse = reverse;
    args.lengths = const_data<int64_t>(lengths);
    args.x = const_data<S>(x);
    args.weight_ih = const_data<S>(weight_ih);
    args.weight_hh = const_data<S>(weight_hh);
    args.hx = const_data<S>(hx);
    args.cx = const_data<S>(cx);
  }
};

constexpr std::array<int64_t, 1> kNothing = {0};  // the shape of what is not needed

struct ForwardResult {
  Tensor output, hy;
  MaybeTensor cy;
  Tensor saved;
};

// launch(layer, ForwardArgs<S>) runs the kernels of a device.
template <class Launch>
ForwardResult run_forward(const Layer& layer, bool reverse, bool save, const Launch& launch) {
  const ScalarType accumulate = accumulate_type(layer.x.scalar_type());
  const auto saved_shape = layer.saved_shape();
  ForwardResult result{layer.allocate({layer.T, layer.B, layer.H}), layer.allocate({layer.B, layer.H}), std::nullopt,
                       allocate(layer.x, save ? Sizes(saved_shape) : Sizes(kNothing), accumulate)};
  if (layer.cx) result.cy = layer.allocate({layer.B, layer.H});
  if (layer.B == 0 || layer.H == 0) return result;
  if (layer.T == 0) {
    torch::stable::copy_(result.hy, layer.hx);
    if (layer.cx) torch::stable::copy_(*result.cy, *layer.cx);
    return result;
  }
  with_storage_type(layer.x.scalar_type(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    ForwardArgs<S> args;
    layer.fill(args, reverse);
    args.bias_ih = const_data<S>(layer.bias_ih);
    args.bias_hh = const_data<S>(layer.bias_hh);
    args.output = data<S>(result.output);
    args.output_row = layer.H;
    args.hy = data<S>(result.hy);
    args.cy = result.cy ? data<S>(*result.cy) : nullptr;
    args.saved = save ? data<accumulate_t<S>>(result.saved) : nullptr;
    launch(layer, args);
  });
  return result;
}

struct BackwardResult {
  Tensor grad_x, grad_weight_ih, grad_weight_hh, grad_bias_ih, grad_bias_hh, grad_hx;
  MaybeTensor grad_cx;
};

// launch(layer, BackwardArgs<S>) runs the kernels of a device.
template <class Launch>
BackwardResult run_backward(const Layer& layer, const MaybeTensor& grad_output_, const MaybeTensor& grad_hy_,
                            const MaybeTensor& grad_cy_, const Tensor& output_, const Tensor& saved_, bool reverse,
                            bool needs_x, bool needs_weights, const Launch& launch) {
  const int64_t T = layer.T, B = layer.B, H = layer.H, rows = gates(layer.cell) * H;
  const MaybeTensor grad_output = prepared(grad_output_, "grad_output", {T, B, H}, layer.x);
  const MaybeTensor grad_hy = prepared(grad_hy_, "grad_hy", {B, H}, layer.x);
  const MaybeTensor grad_cy = prepared(grad_cy_, "grad_cy", {B, H}, layer.x);
  const Tensor output = prepared(output_, "output", {T, B, H}, layer.x);
  check_shape(saved_, "saved", layer.saved_shape());
  require(saved_.scalar_type() == accumulate_type(layer.x.scalar_type()), "saved must have dtype ",
          accumulate_type(layer.x.scalar_type()), ", got ", saved_.scalar_type());
  const Tensor saved = as_contiguous(saved_);

  const auto allocate_if = [&](bool needed, Sizes shape) { return layer.allocate(needed ? shape : Sizes(kNothing)); };
  BackwardResult result{allocate_if(needs_x, {T, B, layer.I}),
                        allocate_if(needs_weights, {rows, layer.I}),
                        allocate_if(needs_weights, {rows, H}),
                        allocate_if(needs_weights && layer.bias_ih, {rows}),
                        allocate_if(needs_weights && layer.bias_hh, {rows}),
                        layer.allocate({B, H}),
                        std::nullopt};
  if (layer.cx) result.grad_cx = layer.allocate({B, H});
  if (T == 0 || B == 0 || H == 0) {  // no step takes place
    for (Tensor* grad :
         {&result.grad_x, &result.grad_weight_ih, &result.grad_weight_hh, &result.grad_bias_ih, &result.grad_bias_hh})
      torch::stable::zero_(*grad);
    const auto pass_on = [](Tensor& grad_initial, const MaybeTensor& grad_final) {
      if (grad_final)
        torch::stable::copy_(grad_initial, *grad_final);
      else
        torch::stable::zero_(grad_initial);
    };
    pass_on(result.grad_hx, grad_hy);
    if (result.grad_cx) pass_on(*result.grad_cx, grad_cy);
    return result;
  }
  with_storage_type(layer.x.scalar_type(), [&](auto tag) {
    using S = typename decltype(tag)::type;
    const auto data_if = [](bool needed, const Tensor& tensor) { return needed ? data<S>(tensor) : nullptr; };
    BackwardArgs<S> args;
    layer.fill(args, reverse);
    args.grad_output = const_data<S>(grad_output);
    args.grad_hy = const_data<S>(grad_hy);
    args.grad_cy = const_data<S>(grad_cy);
    args.output = const_data<S>(output);
    args.saved = const_data<accumulate_t<S>>(saved);
    args.grad_x = data_if(needs_x, result.grad_x);
    args.grad_weight_ih = data_if(needs_weights, result.grad_weight_ih);
    args.grad_weight_hh = data_if(needs_weights, result.grad_weight_hh);
    args.grad_bias_ih = data_if(needs_weights && layer.bias_ih, result.grad_bias_ih);
    args.grad_bias_hh = data_if(needs_weights && layer.bias_hh, result.grad_bias_hh);
    args.grad_hx = data<S>(result.grad_hx);
    args.grad_cx = result.grad_cx ? data<S>(*result.grad_cx) : nullptr;
    launch(layer, args);
  });
  return result;
}

}  // namespace fused_rnn

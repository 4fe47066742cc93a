// Tensors: checks, allocation, the choice of the storage type. Nothing here depends on the device. Only .cpp files that
// talk to torch include this.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/HeaderOnlyArrayRef.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "scalar.h"

namespace fused_rnn {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

// ---- Checks, whose messages give wanted and got ----

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

inline std::string shape_text(Sizes sizes) {
  std::ostringstream text;
  text << "[";
  for (size_t i = 0; i < sizes.size(); ++i) text << (i ? ", " : "") << sizes[i];
  text << "]";
  return text.str();
}

// As Python says it.
inline std::string dtype_text(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return "torch.float32";
    case ScalarType::Double: return "torch.float64";
    case ScalarType::BFloat16: return "torch.bfloat16";
    case ScalarType::Half: return "torch.float16";
    case ScalarType::Bool: return "torch.bool";
    case ScalarType::Char: return "torch.int8";
    case ScalarType::Short: return "torch.int16";
    case ScalarType::Int: return "torch.int32";
    case ScalarType::Long: return "torch.int64";
    default: break;
  }
  std::ostringstream text;
  text << dtype;
  return text.str();
}

inline std::string device_text(const Tensor& tensor) {
  if (tensor.is_cpu()) return "cpu";
  return tensor.is_cuda() ? "cuda:" + std::to_string(tensor.get_device_index()) : "another device";
}

inline bool same_shape(Sizes a, Sizes b) {
  bool same = a.size() == b.size();
  for (size_t i = 0; same && i < a.size(); ++i) same = a[i] == b[i];
  return same;
}

// Tools that look for a smaller batch recognise these beginnings, which are those of PyTorch's own messages.
[[noreturn]] inline void fail_out_of_memory(bool is_cpu, int64_t bytes, const std::string& purpose) {
  fail(is_cpu ? "DefaultCPUAllocator: can't allocate memory: you tried to allocate "
              : "CUDA out of memory. Tried to allocate ",
       bytes, " bytes, ", purpose);
}

inline std::string numbers_text(Sizes shape, ScalarType dtype) {
  std::ostringstream text;
  text << shape_text(shape) << " numbers of dtype " << dtype_text(dtype);
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

// The name of a tensor in error messages. Its text is built only when an error is raised.
struct Name {
  const char* base;
  int64_t layer = -1, direction = 0;  // of a weight: torch.nn's suffixes

  std::string text() const {
    if (layer < 0) return base;
    return base + ("_l" + std::to_string(layer)) + (direction ? "_reverse" : "");
  }
};

inline void check(const Tensor& tensor, const Name& name, Sizes shape, ScalarType dtype, const Tensor& input) {
  if (!tensor.defined()) fail(name.text(), " must be a tensor, got None");
  if (const Sizes got = tensor.sizes(); !same_shape(got, shape))
    fail(name.text(), " must be ", shape_text(shape), ", got ", shape_text(got));
  if (tensor.scalar_type() != dtype || tensor.device() != input.device())
    fail(name.text(), " must be ", dtype_text(dtype), " on ", device_text(input), " like input, got ",
         dtype_text(tensor.scalar_type()), " on ", device_text(tensor));
}

// Checks a tensor and makes it contiguous.
inline void prepare(Tensor& tensor, const Name& name, Sizes shape, ScalarType dtype, const Tensor& input) {
  check(tensor, name, shape, dtype, input);
  if (!tensor.is_contiguous()) tensor = as_contiguous(tensor);
}

// ---- The storage type ----

template <class S>
struct TypeTag {
  using type = S;
};

// The only list in C++ of the dtypes that have kernels.
template <class F>
auto with_storage_type(ScalarType dtype, F&& f) {
  switch (dtype) {
    case ScalarType::Float: return f(TypeTag<float>());
    case ScalarType::Double: return f(TypeTag<double>());
    case ScalarType::BFloat16: return f(TypeTag<BFloat16>());
    case ScalarType::Half: return f(TypeTag<Float16>());
    default: break;
  }
  fail("fused_rnn has kernels for float32, float64, bfloat16 and float16, got ", dtype_text(dtype));
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

// ---- Allocation ----

// The function behind PyTorch's op: a streaming step allocates three times.
inline Tensor new_empty(const Tensor& like, Sizes shape, ScalarType dtype, const int64_t* strides) {
  std::array<int64_t, 4> contiguous;  // of no more dimensions than any of ours has
  if (!strides) {
    int64_t stride = 1;
    for (size_t i = shape.size(); i-- > 0; stride *= shape[i] > 1 ? shape[i] : 1) contiguous.at(i) = stride;
    strides = contiguous.data();
  }
  int32_t device_type = aoti_torch_device_type_cpu();
  if (!like.is_cpu()) STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  const int32_t index = like.is_cpu() ? 0 : like.get_device_index();
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      int64_t(shape.size()), shape.data(), strides,
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)), device_type, index, &handle));
  return Tensor(handle);
}

inline void fill_with_zeros(const Tensor& tensor) {
  if (tensor.is_cpu() && tensor.is_contiguous()) {  // the op costs a microsecond
    const int64_t bytes = bytes_of(tensor.sizes(), int64_t(tensor.element_size()));
    if (bytes > 0) std::memset(tensor.mutable_data_ptr(), 0, size_t(bytes));  // an empty tensor has no memory
    return;
  }
  Tensor same = tensor;
  torch::stable::zero_(same);
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

// A new tensor on the device of `like`, contiguous unless strides are given; in a build for tests it is full of NaN.
inline Tensor allocate(const Tensor& like, Sizes shape, ScalarType dtype, const int64_t* strides = nullptr) {
  try {
    require(bytes_of(shape, element_size(dtype)) < INT64_MAX, "more bytes than can be counted");
    Tensor tensor = new_empty(like, shape, dtype, strides);
    poison(tensor);
    return tensor;
  } catch (const std::exception&) {  // the stable ABI's own message is a line of its source
    fail_out_of_memory(like.is_cpu(), bytes_of(shape, element_size(dtype)), "for " + numbers_text(shape, dtype));
  }
}

}  // namespace fused_rnn

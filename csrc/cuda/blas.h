// Matrix products by the library that PyTorch has loaded. Row-major, whatever the library thinks of it.
#pragma once

#include <cstdint>

#include "../scalar.h"
#include "layout.h"

namespace fused_rnn {

enum class NumberType { kFloat32, kBFloat16, kFloat16 };

template <class S>
struct NumberTypeOf;
template <>
struct NumberTypeOf<float> {
  static constexpr NumberType value = NumberType::kFloat32;
};
template <>
struct NumberTypeOf<BFloat16> {
  static constexpr NumberType value = NumberType::kBFloat16;
};
template <>
struct NumberTypeOf<Float16> {
  static constexpr NumberType value = NumberType::kFloat16;
};

// A factor of a product. Where it is transposed, its rows in memory are its columns in the product.
template <class S>
struct Matrix {
  const S* data;
  int64_t stride;  // from one row in memory to the next
  bool transposed = false;
};

// C [M, N] = A [M, K] B [K, N], or C += A B. Sums are float32.
struct Product {
  int64_t M, N, K;
  Matrix<void> a, b;
  void* c;
  int64_t c_stride;
  NumberType factor_type, c_type;
  bool accumulate;
};

// The library on one device and stream, for the time of one op.
class Blas {
 public:
  // math: what float32 factors are rounded to. The device is the current one.
  explicit Blas(Math math);

  // The same, for products whose float32 factors must not be rounded.
  Blas exact() const {
    Blas copy = *this;
    copy.math_ = Math::kFloat32;
    return copy;
  }

  // Throws std::runtime_error.
  template <class S, class C>
  void multiply(int64_t M, int64_t N, int64_t K, Matrix<S> a, Matrix<S> b, C* c, int64_t c_stride,
                bool accumulate = false) const {
    multiply({M,
              N,
              K,
              {a.data, a.stride, a.transposed},
              {b.data, b.stride, b.transposed},
              c,
              c_stride,
              NumberTypeOf<S>::value,
              NumberTypeOf<C>::value,
              accumulate});
  }

 private:
  void multiply(const Product& product) const;

  Math math_;
  void* handle_;
};

}  // namespace fused_rnn

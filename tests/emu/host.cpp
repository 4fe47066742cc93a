// What the host code of csrc/cuda asks of the machine, without one: a device that tests choose, and matrix products.
#include "host.h"

#include <stdexcept>
#include <vector>

#include "../../csrc/cuda/blas.h"
#include "../../csrc/cuda/placement.h"
#include "../../csrc/cuda/runtime.h"
#include "emulator.h"
// after the emulator, which it needs
#include "../../csrc/cuda/numbers.cuh"

namespace fused_rnn {

Device& emulated_device() {
  static Device device = known_device("H200");
  return device;
}

// ---- placement.h, runtime.h ----

Device device_of(const Tensor&) { return emulated_device(); }

Stream stream_of(const Tensor&) { return nullptr; }

unsigned* gave_up_word(const Tensor&) {
  static unsigned word = 0;
  check_gave_up(&word);
  return &word;
}

std::shared_ptr<void> current_device_guard(const Tensor&) { return nullptr; }

void check_launch(int error, const char* what) {
  if (error != 0)
    throw std::runtime_error(std::string(what) + " could not be launched: " + cudaGetErrorString(cudaError_t(error)));
}

// ---- blas.h: sums in double, rounded once ----

namespace {

double number(const void* data, NumberType type, int64_t at) {
  switch (type) {
    case NumberType::kFloat32: return static_cast<const float*>(data)[at];
    case NumberType::kBFloat16: return float(static_cast<const BFloat16*>(data)[at]);
    default: return float(static_cast<const Float16*>(data)[at]);
  }
}

void set_number(void* data, NumberType type, int64_t at, double value) {
  switch (type) {
    case NumberType::kFloat32: static_cast<float*>(data)[at] = float(value); break;
    case NumberType::kBFloat16: static_cast<BFloat16*>(data)[at] = BFloat16(float(value)); break;
    default: static_cast<Float16*>(data)[at] = Float16(float(value)); break;
  }
}

// A factor as [rows, columns], with what the math rounds it to.
std::vector<double> unpacked(const Matrix<void>& factor, NumberType type, int64_t rows, int64_t columns, Math math) {
  std::vector<double> all(size_t(rows * columns));
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) {
      const double value = number(factor.data, type, factor.transposed ? j * factor.stride + i : i * factor.stride + j);
      all[size_t(i * columns + j)] = math == Math::kTf32 ? round_to_tf32(float(value)) : value;
    }
  return all;
}

}  // namespace

Blas::Blas(Math math) : math_(math), handle_(nullptr) {}

void Blas::multiply(const Product& p) const {
  const std::vector<double> a = unpacked(p.a, p.factor_type, p.M, p.K, math_);
  const std::vector<double> b = unpacked(p.b, p.factor_type, p.K, p.N, math_);
  std::vector<double> sums(size_t(p.N));
  for (int64_t m = 0; m < p.M; ++m) {
    for (int64_t n = 0; n < p.N; ++n) sums[size_t(n)] = p.accumulate ? number(p.c, p.c_type, m * p.c_stride + n) : 0;
    for (int64_t k = 0; k < p.K; ++k)
      for (int64_t n = 0; n < p.N; ++n) sums[size_t(n)] += a[size_t(m * p.K + k)] * b[size_t(k * p.N + n)];
    for (int64_t n = 0; n < p.N; ++n) set_number(p.c, p.c_type, m * p.c_stride + n, sums[size_t(n)]);
  }
}

}  // namespace fused_rnn

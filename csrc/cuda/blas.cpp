// cuBLAS through PyTorch's own handle, with its stream and its workspace: nothing to create or to allocate during the
// capture of a graph. The prototypes and numbers below are cuBLAS 11's and later's; they are declared here because no
// build needs cuBLAS, and a machine that builds has often none.
#include "blas.h"

#include <climits>
#include <stdexcept>
#include <string>

#include "torch_cuda.h"

namespace fused_rnn {
namespace {

constexpr int kOpN = 0, kOpT = 1;                                    // cublasOperation_t
constexpr int kR32F = 0, kR16F = 2, kR16BF = 14;                     // cudaDataType_t
constexpr int kCompute32F = 68, kCompute32FFastTf32 = 77;            // cublasComputeType_t
constexpr int kDefaultMath = 0, kDisallowReducedPrecisionSums = 16;  // cublasMath_t
constexpr int kGemmDefault = -1;                                     // cublasGemmAlgo_t

using SetMathMode = int (*)(void* handle, int mode);
using GemmEx = int (*)(void* handle, int op_a, int op_b, int m, int n, int k, const void* alpha, const void* a,
                       int a_type, int lda, const void* b, int b_type, int ldb, const void* beta, void* c, int c_type,
                       int ldc, int compute_type, int algorithm);

int data_type(NumberType type) {
  switch (type) {
    case NumberType::kFloat32: return kR32F;
    case NumberType::kBFloat16: return kR16BF;
    default: return kR16F;
  }
}

void check(int status, const char* what) {
  if (status != 0) throw std::runtime_error(std::string(what) + " failed with cuBLAS status " + std::to_string(status));
}

int to_int(int64_t size) {
  if (size > INT_MAX)
    throw std::runtime_error("a matrix of the layer has " + std::to_string(size) + " rows or columns; cuBLAS takes " +
                             std::to_string(INT_MAX) + " at most");
  return int(size);
}

}  // namespace

Blas::Blas(Math math) : math_(math), handle_(nullptr) {
  static const auto get_handle = torch_cuda_function<int (*)(void**)>("torch_get_current_cuda_blas_handle");
  static const auto set_math_mode = torch_cuda_function<SetMathMode>("cublasSetMathMode");
  if (get_handle(&handle_) != 0) throw std::runtime_error("PyTorch has no cuBLAS handle for the current device");
  // PyTorch sets the mode anew whenever it takes its handle.
  check(set_math_mode(handle_, kDefaultMath | kDisallowReducedPrecisionSums), "cublasSetMathMode");
}

void Blas::multiply(const Product& p) const {
  if (p.M == 0 || p.N == 0) return;
  static const auto gemm = torch_cuda_function<GemmEx>("cublasGemmEx");
  const float one = 1, zero = 0;
  const int type = data_type(p.factor_type);
  // cuBLAS thinks in columns: what is row-major to us is its transpose to cuBLAS, and C^T = B^T A^T.
  check(gemm(handle_, p.b.transposed ? kOpT : kOpN, p.a.transposed ? kOpT : kOpN, to_int(p.N), to_int(p.M), to_int(p.K),
             &one, p.b.data, type, to_int(p.b.stride), p.a.data, type, to_int(p.a.stride), p.accumulate ? &one : &zero,
             p.c, data_type(p.c_type), to_int(p.c_stride), math_ == Math::kTf32 ? kCompute32FFastTf32 : kCompute32F,
             kGemmDefault),
        "cublasGemmEx");
}

}  // namespace fused_rnn

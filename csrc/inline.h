// Functions in headers that several instruction sets share are always inlined: an out-of-line copy would be one weak
// symbol, and the linker could give AVX-512 code to a processor that has none.
#pragma once

#ifdef __CUDACC__
#define FUSED_RNN_INLINE __host__ __device__ __forceinline__
#else
#define FUSED_RNN_INLINE inline __attribute__((always_inline))
#endif

namespace fused_rnn {

// a / b rounded up, of integers from 0.
template <class A, class B>
constexpr FUSED_RNN_INLINE auto ceil_div(A a, B b) {
  return (a + b - 1) / b;
}

}  // namespace fused_rnn

#include "../kernels.cuh"

namespace fused_rnn {
template Kernels<float> kernels<GruCell, float>();
}  // namespace fused_rnn

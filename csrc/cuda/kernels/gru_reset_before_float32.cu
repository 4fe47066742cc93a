#include "../kernels.cuh"

namespace fused_rnn {
template Kernels<float> kernels<GruResetBeforeCell, float>();
}  // namespace fused_rnn

// The only way to start a kernel. A kernel takes one struct by value, so that one template starts them all.
#pragma once

#include <cstddef>

#ifndef FUSED_RNN_EMULATOR
#include <cuda_runtime.h>
#endif

namespace fused_rnn {

struct LaunchConfig {
  dim3 grid, block;
  size_t shared_bytes;
  cudaStream_t stream;
  bool cooperative;  // all blocks are resident at once, or the launch fails
  unsigned cluster;  // blocks of a cluster, along x; 0 or 1 for none
};

template <class Args>
cudaError_t launch(void (*kernel)(Args), const LaunchConfig& config, const Args& args) {
#ifdef FUSED_RNN_EMULATOR
  return emu::launch({config.grid, config.block, config.shared_bytes, config.cooperative, config.cluster},
                     [&] { kernel(args); });
#else
  constexpr size_t kWithoutAsking = 48 * 1024;
  constexpr unsigned kPortableCluster = 8;
  if (config.shared_bytes > kWithoutAsking) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(config.shared_bytes));
    if (error != cudaSuccess) return error;
  }
  if (config.cluster > kPortableCluster) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    if (error != cudaSuccess) return error;
  }

  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t launch_config = {};
  launch_config.gridDim = config.grid;
  launch_config.blockDim = config.block;
  launch_config.dynamicSmemBytes = config.shared_bytes;
  launch_config.stream = config.stream;
  launch_config.attrs = attributes;
  if (config.cooperative) {
    cudaLaunchAttribute& attribute = attributes[launch_config.numAttrs++];
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
  }
  if (config.cluster > 1) {
    cudaLaunchAttribute& attribute = attributes[launch_config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = config.cluster;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  }
  return cudaLaunchKernelEx(&launch_config, kernel, args);
#endif
}

}  // namespace fused_rnn

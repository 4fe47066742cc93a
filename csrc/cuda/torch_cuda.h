// Functions that only a CUDA build of PyTorch has, and those of the libraries it loads. They are looked up when they
// are first needed, so that one extension works under every PyTorch.
#pragma once

namespace fused_rnn {

// Null if there is none of that name.
void* find_torch_cuda_symbol(const char* name);

// Throws std::runtime_error that names the function.
void* torch_cuda_symbol(const char* name);

template <class Function>
Function torch_cuda_function(const char* name) {
  return reinterpret_cast<Function>(torch_cuda_symbol(name));
}

}  // namespace fused_rnn

// The devices of this machine, as the host code sees them. Plain C++: also where the extension was built without CUDA.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "plan.h"

namespace fused_rnn {

// The architectures that the extension has code for, "80 90a 100", or "" for none.
const char* built_architectures();

// Why the kernels cannot run on that GPU, a sentence, or an empty string.
std::string why_not_device(int index);

// Throws std::runtime_error with the sentence of why_not_device.
Device device_at(int index);

// What float32 products multiply on a device.
inline Math float32_math(bool allow_tf32, int capability) {
  return allow_tf32 && capability >= 80 ? Math::kTf32 : Math::kFloat32;
}

// PyTorch's current stream of that GPU, a cudaStream_t. Throws std::runtime_error.
void* current_stream(int index);

// Of that GPU, for kernels that wait for one another: see placement.h. Its memory is the process's.
unsigned* gave_up_word(int index);

// Throws std::runtime_error if the word is set, and clears it.
inline void check_gave_up(unsigned* word) {
  if (!*static_cast<volatile unsigned*>(word)) return;
  *word = 0;
  throw std::runtime_error(
      "an earlier recurrent layer on this GPU gave up: a block waited for two seconds for another one of its group. "
      "The results of that layer are NaN. FUSED_RNN_TIER=stepwise runs layers without such waiting");
}

// Throws std::runtime_error that says what failed and how, unless `error` is cudaSuccess.
void check_launch(int error, const char* what);

}  // namespace fused_rnn

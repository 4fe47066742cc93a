// Where a layer's tensors are.
#pragma once

#include <memory>

#include "../tensors.h"
#include "kernels.h"

namespace fused_rnn {

// Throws std::runtime_error if the kernels cannot run there.
Device device_of(const Tensor& x);

Stream stream_of(const Tensor& x);

// A word that the device of x can write and the host read. A kernel sets it when it gives up waiting for a block of its
// own; where one has done so since the last question, throws std::runtime_error, since its results are NaN.
unsigned* gave_up_word(const Tensor& x);

// Makes the device of x the current one until the result is gone.
std::shared_ptr<void> current_device_guard(const Tensor& x);

}  // namespace fused_rnn

// The device that the host code of csrc/cuda finds in the emulator.
#pragma once

#include "../../csrc/cuda/plan.h"

namespace fused_rnn {

Device& emulated_device();

}  // namespace fused_rnn

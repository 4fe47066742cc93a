// From a plan to a launch. Included by the source files in kernels/, each of which compiles one cell and storage type.
#pragma once

#include <type_traits>

#include "block.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "stepwise.cuh"

namespace fused_rnn {

template <class Args>
int launch_block(void (*kernel)(Args), const Args& args, const Plan& plan, Stream stream) {
  return launch(kernel,
                LaunchConfig{dim3(unsigned(plan.blocks)), dim3(unsigned(plan.threads)), size_t(plan.shared_bytes),
                             static_cast<cudaStream_t>(stream), false, 0},
                args);
}

// The kernel for the math and the place of the weights.
template <class S, class ForMath>
int with_math(Math math, bool resident, const ForMath& f) {
  const auto with_place = [&](auto m) {
    constexpr Math kMath = decltype(m)::value;
    if constexpr (tile_depth(kMath) > 0)
      if (resident) return f(m, std::true_type());
    return f(m, std::false_type());
  };
  if constexpr (std::is_same<S, BFloat16>::value) return with_place(std::integral_constant<Math, Math::kBFloat16>());
  if constexpr (std::is_same<S, Float16>::value) return with_place(std::integral_constant<Math, Math::kFloat16>());
  if constexpr (std::is_same<S, float>::value) {
    if (math == Math::kTf32) return with_place(std::integral_constant<Math, Math::kTf32>());
    return with_place(std::integral_constant<Math, Math::kFloat32>());
  }
}

// The cell whose functions are as exact as its products.
template <template <class> class CellOf, Math kMath>
using BlockCell = CellOf<RealOf<kMath != Math::kFloat32>>;

template <template <class> class CellOf, class S>
int launch_block_forward(const ForwardSteps<S>& args, const Plan& plan, Math math, Stream stream) {
  return with_math<S>(math, plan.resident, [&](auto m, auto resident) {
    constexpr Math kMath = decltype(m)::value;
    return launch_block(block_forward<BlockCell<CellOf, kMath>, S, kMath, decltype(resident)::value>, args, plan,
                        stream);
  });
}

template <template <class> class CellOf, class S>
int launch_block_backward(const BackwardSteps<S>& args, const Plan& plan, Math math, Stream stream) {
  return with_math<S>(math, plan.resident, [&](auto m, auto resident) {
    constexpr Math kMath = decltype(m)::value;
    return launch_block(block_backward<BlockCell<CellOf, kMath>, S, kMath, decltype(resident)::value>, args, plan,
                        stream);
  });
}

// A kernel that takes any number of elements.
template <class Args>
int launch_elements(void (*kernel)(Args), const Args& args, int64_t elements, Stream stream) {
  constexpr int64_t kMostBlocks = 4096;
  const int64_t blocks = (elements + kStepThreads - 1) / kStepThreads;
  if (blocks == 0) return 0;
  return launch(kernel,
                LaunchConfig{dim3(unsigned(blocks < kMostBlocks ? blocks : kMostBlocks)), dim3(kStepThreads), 0,
                             static_cast<cudaStream_t>(stream), false, 0},
                args);
}

template <template <class> class CellOf, class S>
Kernels<S> kernels() {
  using Cell = CellOf<Real>;
  Kernels<S> all{};
  all.block_forward = launch_block_forward<CellOf, S>;
  all.block_backward = launch_block_backward<CellOf, S>;
  all.stepwise_forward = [](const ForwardStep<S>& step, Stream stream) -> int {
    return launch_elements(stepwise_forward<Cell, S>, step, step.steps.B * step.steps.H, stream);
  };
  all.stepwise_backward = [](const BackwardStep<S>& step, Stream stream) -> int {
    return launch_elements(stepwise_backward<Cell, S>, step, step.steps.B * step.steps.H, stream);
  };
  if constexpr (Cell::kResetBefore) {
    all.stepwise_reset = [](const ForwardStep<S>& step, Stream stream) -> int {
      return launch_elements(stepwise_reset<Cell, S>, step, step.steps.B * step.steps.H, stream);
    };
    all.stepwise_candidate = [](const BackwardStep<S>& step, Stream stream) -> int {
      return launch_elements(stepwise_candidate<Cell, S>, step, step.steps.B * step.steps.H, stream);
    };
  }
  return all;
}

}  // namespace fused_rnn

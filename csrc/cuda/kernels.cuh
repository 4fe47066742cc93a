// From a plan to a launch. Included by the source files in kernels/, each of which compiles one cell and storage type.
#pragma once

#include <type_traits>

#include "kernels.h"
#include "launch.cuh"
#include "projection.cuh"
#include "recurrence.cuh"

namespace fused_rnn {

template <class Args>
int launch_persistent(void (*kernel)(Args), const Args& args, const Launch& how) {
  static_assert(sizeof(Args) <= 4096, "a kernel takes no more by value");
  const Layout& layout = how.plan.layout;
  return launch(kernel,
                LaunchConfig{dim3(unsigned(how.plan.groups * layout.blocks), unsigned(how.parts)),
                             dim3(unsigned(32 * layout.warps())), size_t(how.plan.shared_bytes),
                             static_cast<cudaStream_t>(how.stream), how.plan.tier == Tier::kGrid,
                             layout.cluster ? unsigned(layout.blocks) : 0},
                args);
}

// A kernel's way to keep weights: tiles of the depth in registers, and whether there may be others in shared memory.
template <int kRegisters, bool kShared>
struct Weights {
  static constexpr int kInRegisters = kRegisters;
  static constexpr bool kInShared = kShared;
};

// f(math, weights, tier), as constants, for the plan's kernel.
template <int kGates, bool kBackward, class S, class F>
int with_plan(const Plan& plan, Math math, const F& f) {
  const auto with_math = [&](auto m) {
    constexpr Math kMath = decltype(m)::value;
    constexpr int kInBlock = most_in_registers(kMath, kGates, kBackward, true);
    using InBlocks = Weights<most_in_registers(kMath, kGates, kBackward, false), true>;
    if (plan.tier == Tier::kGrid) return f(m, InBlocks(), std::integral_constant<Tier, Tier::kGrid>());
    if (plan.tier == Tier::kCluster) return f(m, InBlocks(), std::integral_constant<Tier, Tier::kCluster>());
    const std::integral_constant<Tier, Tier::kBlock> block;
    if constexpr (kInBlock > 0)
      if (plan.layout.in_registers) return f(m, Weights<kInBlock, false>(), block);
    return f(m, Weights<0, true>(), block);
  };
  if constexpr (std::is_same<S, BFloat16>::value) return with_math(std::integral_constant<Math, Math::kBFloat16>());
  if constexpr (std::is_same<S, Float16>::value) return with_math(std::integral_constant<Math, Math::kFloat16>());
  if constexpr (std::is_same<S, float>::value) {
    if (math == Math::kTf32) return with_math(std::integral_constant<Math, Math::kTf32>());
    return with_math(std::integral_constant<Math, Math::kFloat32>());
  }
}

// The cell whose functions are as exact as its products.
template <template <class> class CellOf, Math kMath>
using PersistentCell = CellOf<RealOf<kMath != Math::kFloat32>>;

template <template <class> class CellOf, class S>
int launch_forward(const Recurrence<ForwardSteps<S>>& args, const Launch& how) {
  return with_plan<CellOf<float>::kGates, false, S>(how.plan, how.math, [&](auto m, auto weights, auto tier) {
    using Weights = decltype(weights);
    using Cell = PersistentCell<CellOf, m>;
    return launch_persistent(recurrent_forward<Cell, S, m, Weights::kInRegisters, Weights::kInShared, tier>, args, how);
  });
}

template <template <class> class CellOf, class S>
int launch_backward(const Recurrence<BackwardSteps<S>>& args, const Launch& how) {
  return with_plan<CellOf<float>::kGates, true, S>(how.plan, how.math, [&](auto m, auto weights, auto tier) {
    using Weights = decltype(weights);
    using Cell = PersistentCell<CellOf, m>;
    return launch_persistent(recurrent_backward<Cell, S, m, Weights::kInRegisters, Weights::kInShared, tier>, args,
                             how);
  });
}

// A kernel that takes any number of elements.
template <class Args>
int launch_elements(void (*kernel)(Args), const Args& args, int64_t elements, Stream stream) {
  constexpr int64_t kMostBlocks = 4096;
  const int64_t blocks = ceil_div(elements, kStepThreads);
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
  all.forward = launch_forward<CellOf, S>;
  all.backward = launch_backward<CellOf, S>;
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
  if constexpr (Cell::kProjects) {
    all.projected_forward = [](const ForwardStep<S>& step, Stream stream) -> int {
      return launch_elements(projected_forward<Cell, S>, step, step.steps.B * step.steps.H, stream);
    };
    all.projected_backward = [](const BackwardStep<S>& step, Stream stream) -> int {
      return launch_elements(projected_backward<Cell, S>, step, step.steps.B * step.steps.H, stream);
    };
  }
  return all;
}

}  // namespace fused_rnn

// The kernels of one cell and storage type as the host calls them: each enqueues on a stream and returns a cudaError_t
// as a plain int. Needs no CUDA header.
#pragma once

#include "plan.h"
#include "steps.h"

namespace fused_rnn {

using Stream = void*;  // a cudaStream_t

// How a recurrence is launched.
struct Launch {
  const Plan& plan;  // not a stepwise one
  Math math;
  int parts;
  Stream stream;
};

template <class S>
struct Kernels {
  int (*forward)(const Recurrence<ForwardSteps<S>>&, const Launch&);
  int (*backward)(const Recurrence<BackwardSteps<S>>&, const Launch&);
  int (*stepwise_forward)(const ForwardStep<S>&, Stream);
  int (*stepwise_backward)(const BackwardStep<S>&, Stream);
  int (*stepwise_reset)(const ForwardStep<S>&, Stream);       // reset before the matmul only
  int (*stepwise_candidate)(const BackwardStep<S>&, Stream);  // reset before the matmul only
  int (*projected_forward)(const ForwardStep<S>&, Stream);    // cells whose h may be projected
  int (*projected_backward)(const BackwardStep<S>&, Stream);  // cells whose h may be projected
};

// One source file in kernels/ for each.
template <template <class> class Cell, class S>
Kernels<S> kernels();

template <class S, template <class> class... Cells>
Kernels<S> kernels(const CellTraits& cell, CellList<Cells...>) {
  constexpr Kernels<S> (*kOfEach[])() = {kernels<Cells, S>...};
  return kOfEach[cell.index]();
}

// Some kernel, as the CUDA runtime knows it.
const void* sample_kernel();

template <class S>
int copy_active(const ActiveCopy<S>&, Stream);

template <class From, class To>
int copy_kept(const KeptCopy<From, To>&, Stream);

template <class S>
int projected_h(const ProjectedStep<S>&, Stream);

template <class S>
int projected_grad_h(const ProjectedGradStep<S>&, Stream);

template <class S>
int convert(const Conversion<S>&, Stream);

}  // namespace fused_rnn

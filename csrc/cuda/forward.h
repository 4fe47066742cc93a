// The forward of one layer in one direction on a GPU: the work for a chunk of steps before and after the time loop.
#pragma once

#include "pass.h"

namespace fused_rnn {

template <class S>
class ForwardLayer {
 public:
  using Steps = ForwardSteps<S>;
  static constexpr auto kKernel = &Kernels<S>::forward;
  static constexpr const char* kName = "forward";

  // dropout: makes x from the output of the layer before; or null.
  ForwardLayer(const Pass<S>& pass, const ForwardArgs<S, S>& args, const Masked* dropout)
      : pass_(pass),
        args_(args),
        dropout_(dropout),
        output_(pass.context, has_gaps(args) || args.output == args.hy ? pass.T * pass.B * pass.P : 0),
        zeros_(pass.context, args),
        gates_x_(pass.context, pass.chunk_rows() * pass.GH),
        c_(pass.context, pass.has_c() && !(pass.is_persistent() && pass.is_one_chunk()) ? pass.B * pass.H : 0),
        gates_h_(pass.context, pass.is_persistent() ? 0 : pass.B * pass.GH),
        between_(pass.context, pass.has_two_products() ? pass.B * pass.H : 0),
        hx_(pass.context, !pass.is_persistent() && args.resets ? pass.B * pass.P : 0),
        h_(pass.context, pass.projects() ? pass.B * pass.P : 0) {
    if (args_.I == 0) fill_with_zeros(gates_x_.tensor());  // a library matmul takes no factor without columns
  }

  Steps steps(int begin, int count) const {
    Steps steps = steps_of<Steps>(args_, args_.reverse, begin, count);
    zeros_.replace_absent(steps);
    steps.gates_x = gates_x_.get(), steps.bias_ih = args_.bias_ih, steps.bias_hh = args_.bias_hh;
    steps.output = output_.get() ? output_.get() : args_.output;
    steps.hy = args_.hy, steps.cy = args_.cy, steps.c = c_.get(), steps.saved = args_.saved;
    return steps;
  }

  void before(const Steps& chunk) const {
    if (dropout_) dropout_->compute(chunk.lowest_time(), chunk.count);
    const S* x = args_.x + chunk.lowest_time() * pass_.B * args_.I;
    if (args_.I > 0)
      pass_.blas.multiply(chunk.count * pass_.B, pass_.GH, args_.I, Matrix<S>{x, args_.I},
                          {args_.weight_ih, args_.I, true}, gates_x_.get(), pass_.GH);
  }

  // Step `place` of a chunk, by itself.
  void run_step(Steps steps, int64_t place) const {
    const int64_t B = pass_.B, H = pass_.H, P = pass_.P, GH = pass_.GH, first = pass_.first;
    steps.gates_x += place * B * GH;
    const ForwardStep<S> step{steps, gates_h_.get(), between_.get()};
    const S* h = steps.is_first() ? steps.hx : steps.hy;
    if (steps.is_first() && args_.resets) {
      check_launch(copy_kept<S, S>({pass_.of_h(steps), steps.hx, hx_.get()}, pass_.stream), "copy_kept");
      h = hx_.get();
    }
    const S* weight = steps.weight_hh;
    pass_.blas.multiply(B, first, P, Matrix<S>{h, P}, {weight, P, true}, step.gates_h, GH);
    if (pass_.projects()) {
      check_launch(pass_.kernels.projected_forward(step, pass_.stream), "projected_forward");
      pass_.blas.multiply(B, P, H, Matrix<S>{step.between, H}, {args_.weight_hr, H, true}, h_.get(), P);
      return check_launch(projected_h<S>({pass_.of_h(steps), h_.get()}, pass_.stream), "projected_h");
    }
    if (pass_.cell().resets_before) {
      check_launch(pass_.kernels.stepwise_reset(step, pass_.stream), "stepwise_reset");
      pass_.blas.multiply(B, H, H, Matrix<S>{step.between, H}, {weight + first * H, H, true}, step.gates_h + first, GH);
    }
    check_launch(pass_.kernels.stepwise_forward(step, pass_.stream), "stepwise_forward");
  }

  void after(const Steps&) const {}

  void finish() const {
    if (has_gaps(args_)) copy_rows(pass_.context, args_, output_.get(), args_.P, args_.output, args_.output_row);
  }

 private:
  const Pass<S>& pass_;
  const ForwardArgs<S, S> args_;
  const Masked* dropout_;
  const DeviceScratch<S> output_;  // where rows of args_.output have gaps, or args_.output is hy as well
  const InitialStates<S> zeros_;
  const DeviceScratch<float> gates_x_, c_, gates_h_;
  const DeviceScratch<S> between_;
  const DeviceScratch<S> hx_;     // where a matmul reads it and there are resets: zero in rows that begin with one
  const DeviceScratch<float> h_;  // projected, of one step
};

}  // namespace fused_rnn

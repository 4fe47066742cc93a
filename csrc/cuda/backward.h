// The backward of one layer in one direction on a GPU: the work for a chunk of steps before and after the time loop.
#pragma once

#include "pass.h"

namespace fused_rnn {

// A gradient that grows from chunk to chunk: in place where it can, or else in float32 until all chunks are in.
template <class S>
class GrowingGrad {
 public:
  GrowingGrad(const Context& context, S* target, int64_t n, bool is_one_chunk)
      : target_(target),
        n_(n),
        in_place_(is_one_chunk || std::is_same<S, float>::value),
        sum_(context, target && !in_place_ ? n : 0) {}

  explicit operator bool() const { return target_; }

  // add(pointer) multiplies into it
  template <class Add>
  void add(int64_t offset, const Add& add) const {
    if (in_place_)
      add(target_ + offset);
    else
      add(sum_.get() + offset);
  }
  void finish(Stream stream) const {
    if (target_ && !in_place_) check_launch(convert<S>({n_, sum_.get(), target_}, stream), "convert");
  }

 private:
  S* target_;
  int64_t n_;
  bool in_place_;
  DeviceScratch<float> sum_;
};

template <class S>
class BackwardLayer {
 public:
  using Steps = BackwardSteps<S>;
  static constexpr auto kKernel = &Kernels<S>::backward;
  static constexpr const char* kName = "backward";

  // dropout: makes grad_output from the grad_x of the layer after; or null.
  BackwardLayer(const Pass<S>& pass, const BackwardArgs<S, S>& args, const Masked* dropout)
      : pass_(pass),
        args_(args),
        dropout_(dropout),
        exact_(pass.blas.exact()),
        output_(pass.context, has_gaps(args) ? pass.T * pass.B * pass.P : 0),
        grad_output_(pass.context, has_gaps(args) && args.grad_output ? pass.T * pass.B * pass.P : 0),
        grad_hx_(pass.context, args.grad_hx ? 0 : pass.B * pass.P),
        grad_cx_(pass.context, pass.has_c() && !args.grad_cx ? pass.B * pass.H : 0),
        zeros_(pass.context, args),
        grads_x_(pass.context, pass.chunk_rows() * pass.GH),
        grads_h_(pass.context, pass.cell().grads_differ ? pass.chunk_rows() * pass.GH : 0),
        grads_output_(pass.context, pass.projects() ? pass.chunk_rows() * pass.P : 0),
        h_before_(pass.context, pass.chunk_rows() * pass.P),
        between_(pass.context, pass.cell().resets_before || pass.projects() ? pass.chunk_rows() * pass.H : 0),
        active_x_(pass.context, args.grad_weight_ih && args.lengths ? pass.chunk_rows() * args.I : 0),
        ones_(pass.context, args.grad_bias_ih || args.grad_bias_hh ? pass.chunk_rows() : 0),
        grad_h_(pass.context, pass.B * pass.P),
        grad_c_(pass.context, pass.has_c() ? pass.B * pass.H : 0),
        grad_between_(pass.context, pass.has_two_products() ? pass.B * pass.H : 0),
        weight_ih_(pass.context, args.grad_weight_ih, pass.GH * args.I, pass.is_one_chunk()),
        weight_hh_(pass.context, args.grad_weight_hh, pass.GH * pass.P, pass.is_one_chunk()),
        weight_hr_(pass.context, args.grad_weight_hr, pass.P * pass.H, pass.is_one_chunk()),
        bias_ih_(pass.context, args.grad_bias_ih, pass.GH, pass.is_one_chunk()),
        bias_hh_(pass.context, args.grad_bias_hh, pass.GH, pass.is_one_chunk()) {
    if (Tensor ones = ones_.tensor(); ones_.get()) torch::stable::fill_(ones, 1.0);
    close_gaps(args.output, output_);
    close_gaps(args.grad_output, grad_output_);
  }

  Steps steps(int begin, int count) const {
    Steps steps = steps_of<Steps>(args_, !args_.reverse, begin, count);
    zeros_.replace_absent(steps);
    steps.grad_output = or_else(grad_output_, args_.grad_output), steps.output = or_else(output_, args_.output);
    steps.grad_hy = args_.grad_hy, steps.grad_cy = args_.grad_cy, steps.saved = args_.saved;
    steps.grad_h = grad_h_.get(), steps.grad_c = grad_c_.get();
    steps.grad_hx = or_else(grad_hx_, args_.grad_hx), steps.grad_cx = or_else(grad_cx_, args_.grad_cx);
    steps.grads_x = grads_x_.get(), steps.grads_h = or_else(grads_h_, grads_x_.get());
    steps.h_before = h_before_.get(), steps.between = between_.get();
    return steps;
  }

  void before(const Steps& chunk) const {
    if (dropout_) dropout_->compute(chunk.lowest_time(), chunk.count);
  }

  // Step `place` of a chunk, by itself.
  void run_step(Steps steps, int64_t place) const {
    const int64_t B = pass_.B, H = pass_.H, P = pass_.P, GH = pass_.GH, first = pass_.first, row = place * B;
    steps.grads_x += row * GH, steps.grads_h += row * GH, steps.h_before += row * P;
    if (steps.between) steps.between += row * H;
    const BackwardStep<S> step{steps, grad_between_.get()};
    if (pass_.projects()) {
      S* const grads_output = grads_output_.get() + row * P;
      check_launch(projected_grad_h<S>({pass_.of_h(steps), grads_output}, pass_.stream), "projected_grad_h");
      pass_.blas.multiply(B, H, P, Matrix<S>{grads_output, P}, {args_.weight_hr, H}, grad_between_.get(), H);
      check_launch(pass_.kernels.projected_backward(step, pass_.stream), "projected_backward");
    } else if (pass_.cell().resets_before) {
      check_launch(pass_.kernels.stepwise_candidate(step, pass_.stream), "stepwise_candidate");
      pass_.blas.multiply(B, H, H, Matrix<S>{steps.grads_x + first, GH}, {steps.weight_hh + first * H, H},
                          grad_between_.get(), H);
    }
    if (!pass_.projects()) check_launch(pass_.kernels.stepwise_backward(step, pass_.stream), "stepwise_backward");
    pass_.blas.multiply(B, P, first, Matrix<S>{steps.grads_h, GH}, {steps.weight_hh, P}, steps.grad_h, P, true);
  }

  // The chunk's part of the weights' and biases' gradients, and its grad_x.
  void after(const Steps& chunk) const {
    const int64_t rows = chunk.count * pass_.B, I = args_.I, H = pass_.H, P = pass_.P, GH = pass_.GH,
                  first = pass_.first;
    const bool more = !chunk.is_first();
    const int64_t at = chunk.lowest_time() * pass_.B * I;
    if (args_.grad_x)
      pass_.blas.multiply(rows, I, GH, Matrix<S>{chunk.grads_x, GH}, {args_.weight_ih, I}, args_.grad_x + at, I,
                          args_.adds_grad_x);
    if (!weight_hh_) return;
    const S* x = args_.x + at;
    if (active_x_.get()) {  // what stands in the padding may be NaN, which no zero of grads_x takes away
      check_launch(copy_active<S>({chunk, int(I), x, active_x_.get()}, pass_.stream), "copy_active");
      x = active_x_.get();
    }
    weight_ih_.add(
        0, [&](auto* c) { pass_.blas.multiply(GH, I, rows, Matrix<S>{chunk.grads_x, GH, true}, {x, I}, c, I, more); });
    weight_hh_.add(0, [&](auto* c) {
      pass_.blas.multiply(first, P, rows, Matrix<S>{chunk.grads_h, GH, true}, {chunk.h_before, P}, c, P, more);
    });
    if (weight_hr_)
      weight_hr_.add(0, [&](auto* c) {
        pass_.blas.multiply(P, H, rows, Matrix<S>{grads_output_.get(), P, true}, {chunk.between, H}, c, H, more);
      });
    if (pass_.cell().resets_before)
      weight_hh_.add(first * H, [&](auto* c) {
        pass_.blas.multiply(H, H, rows, Matrix<S>{chunk.grads_h + first, GH, true}, {chunk.between, H}, c, H, more);
      });
    const auto add_bias = [&](const GrowingGrad<S>& bias, const S* grads) {
      if (!bias) return;
      bias.add(0,
               [&](auto* c) { exact_.multiply(1, GH, rows, Matrix<S>{ones_.get(), rows}, {grads, GH}, c, GH, more); });
    };
    add_bias(bias_ih_, chunk.grads_x);
    add_bias(bias_hh_, chunk.grads_h);
  }

  void finish() const {
    if (!pass_.is_persistent()) {
      S* const grad_hx = or_else(grad_hx_, args_.grad_hx);
      const Steps last = pass_.of_h(steps(int(pass_.T) - 1, 1));
      check_launch(copy_kept<float, S>({last, grad_h_.get(), grad_hx}, pass_.stream), "copy_kept");
    }
    for (const GrowingGrad<S>* grad : {&weight_ih_, &weight_hh_, &weight_hr_, &bias_ih_, &bias_hh_})
      grad->finish(pass_.stream);
  }

 private:
  template <class Number, class Pointer>
  static Pointer or_else(const DeviceScratch<Number>& scratch, Pointer given) {
    return scratch.get() ? scratch.get() : given;
  }

  void close_gaps(const S* from, const DeviceScratch<S>& to) const {
    if (to.get()) copy_rows(pass_.context, args_, from, args_.output_row, to.get(), args_.P);
  }

  const Pass<S>& pass_;
  const BackwardArgs<S, S> args_;
  const Masked* dropout_;
  const Blas exact_;  // for sums: no factor is rounded
  const DeviceScratch<S> output_, grad_output_, grad_hx_, grad_cx_;
  const InitialStates<S> zeros_;
  const DeviceScratch<S> grads_x_, grads_h_, grads_output_, h_before_, between_, active_x_, ones_;
  const DeviceScratch<float> grad_h_, grad_c_, grad_between_;
  const GrowingGrad<S> weight_ih_, weight_hh_, weight_hr_, bias_ih_, bias_hh_;
};

}  // namespace fused_rnn

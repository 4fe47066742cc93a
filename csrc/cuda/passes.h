// The forward and the backward of a layer on a GPU: plan, chunks of steps, library matmuls over all steps of a chunk,
// and between them the loop of the plan's tier. Everything is enqueued on the current stream; nothing waits for it.
#pragma once

#include <algorithm>
#include <type_traits>

#include "../stack.h"
#include "blas.h"
#include "kernels.h"
#include "placement.h"
#include "runtime.h"

namespace fused_rnn {

template <class S>
constexpr ScalarType scalar_type() {
  if (std::is_same<S, BFloat16>::value) return ScalarType::BFloat16;
  if (std::is_same<S, Float16>::value) return ScalarType::Half;
  return ScalarType::Float;
}

// Memory of PyTorch's allocator for the time of one op.
template <class S>
class DeviceScratch {
 public:
  DeviceScratch(const Context& context, int64_t n) : tensor_(allocate(context.input, {n}, scalar_type<S>())) {}
  Tensor& tensor() { return tensor_; }
  S* get() const { return tensor_.numel() ? data<S>(tensor_) : nullptr; }

 private:
  Tensor tensor_;
};

// What both passes need: the layer's sizes, its device, its plan.
template <class S>
class Pass {
 protected:
  Pass(const Context& context, const LayerSizes& sizes, bool backward)
      : context_(context),
        device_(device_of(context.input)),
        math_(math_of(context.allow_tf32)),
        plan_(make_plan({context.cell, math_, sizes.T, sizes.B, sizes.H, backward}, device_)),
        stream_(stream_of(context.input)),
        blas_(math_),
        kernels_(kernels<S>(context.cell, AllCells{})),
        T_(sizes.T),
        B_(sizes.B),
        I_(sizes.I),
        H_(sizes.H),
        GH_(context.cell.gates * sizes.H),
        first_(context.cell.hidden_rows(sizes.H)),
        mail_(context, is_grid() ? plan_.groups * plan_.layout.mail_bytes(slots(backward)) / sizeof(float) : 0),
        flags_(context, is_grid() ? plan_.groups * plan_.layout.flags() : 0),
        gave_up_(gave_up_word(context.input)) {
    if (const std::string reason = why_not(math_, device_.capability); !reason.empty()) fail(reason);
  }

  const CellTraits& cell() const { return context_.cell; }
  bool has_c() const { return cell().states > 1; }
  bool is_one_chunk() const { return plan_.chunk == T_; }

  bool is_persistent() const { return plan_.tier != Tier::kStepwise; }
  bool is_grid() const { return plan_.tier == Tier::kGrid; }

  // What the chunks of both passes share.
  static void fill(Steps<S>& steps, const LayerArgs<S>& args, bool down) {
    steps.T = int(args.T), steps.B = int(args.B), steps.H = int(args.H);
    steps.reverse = args.reverse, steps.down = down, steps.lengths = args.lengths;
    steps.weight_hh = args.weight_hh, steps.hx = args.hx, steps.cx = args.cx;
  }

  // body(chunk) for every chunk of the pass.
  template <class Chunk, class Body>
  void for_each_chunk(Chunk chunk, const Body& body) const {
    for (chunk.begin = 0; chunk.begin < chunk.T; chunk.begin += plan_.chunk) {
      chunk.count = std::min(plan_.chunk, chunk.T - chunk.begin);
      body(chunk);
    }
  }

  // start(recurrence) launches a persistent kernel for a chunk: as often as the rows of the batch need it.
  template <class Chunk, class Start>
  void run_persistent(const Chunk& chunk, const char* what, const Start& start) {
    for (int64_t first = 0; first < chunk.B; first += plan_.rows()) {
      if (is_grid()) torch::stable::zero_(flags_.tensor());
      const Mailbox mailbox{reinterpret_cast<unsigned char*>(mail_.get()), reinterpret_cast<unsigned*>(flags_.get()),
                            gave_up_};
      check_launch(start(Recurrence<Chunk>{chunk, plan_.layout, int(first), mailbox}), what);
    }
  }

  // body(step, place) for every step of a chunk, each a chunk by itself; place: in arrays of the chunk.
  template <class Chunk, class Body>
  static void for_each_step(const Chunk& chunk, const Body& body) {
    Chunk step = chunk;
    step.count = 1;
    for (step.begin = chunk.begin; step.begin < chunk.begin + chunk.count; ++step.begin)
      body(step, chunk.place(chunk.time(step.begin)));
  }

  const Context& context_;
  const std::shared_ptr<void> guard_{current_device_guard(context_.input)};
  const Device device_;
  const Math math_;
  const Plan plan_;
  const Stream stream_;
  const Blas blas_;
  const Kernels<S> kernels_;
  const int64_t T_, B_, I_, H_, GH_;
  const int64_t first_;  // rows of weight_hh that multiply h itself; the others multiply r * h

 private:
  int slots(bool backward) const { return Layout::slots(backward, cell().gates, cell().resets_before); }
  Math math_of(bool allow_tf32) const {
    if (std::is_same<S, BFloat16>::value) return Math::kBFloat16;
    if (std::is_same<S, Float16>::value) return Math::kFloat16;
    return float32_math(allow_tf32, device_.capability);
  }

  // A grid's mailbox. Bits, whatever the number type.
  const DeviceScratch<float> mail_;
  DeviceScratch<float> flags_;
  unsigned* const gave_up_;
};

template <class S>
class ForwardPass : Pass<S> {
  using P = Pass<S>;

 public:
  ForwardPass(const Context& context, const ForwardArgs<S>& args)
      : P(context, args, false),
        args_(args),
        gates_x_(context, P::plan_.chunk * P::B_ * P::GH_),
        c_(context, P::has_c() && !(P::is_persistent() && P::is_one_chunk()) ? P::B_ * P::H_ : 0),
        gates_h_(context, P::is_persistent() ? 0 : P::B_ * P::GH_),
        reset_h_(context, !P::is_persistent() && P::cell().resets_before ? P::B_ * P::H_ : 0) {
    if (P::I_ == 0) torch::stable::zero_(gates_x_.tensor());  // a library matmul takes no factor without columns
  }

  void run() {
    const auto& a = args_;
    ForwardSteps<S> all{};
    P::fill(all, a, a.reverse);
    all.gates_x = gates_x_.get(), all.bias_ih = a.bias_ih, all.bias_hh = a.bias_hh;
    all.output = a.output, all.hy = a.hy, all.cy = a.cy, all.c = c_.get(), all.saved = a.saved;
    P::for_each_chunk(all, [&](const ForwardSteps<S>& chunk) {
      const S* x = a.x + chunk.lowest_time() * P::B_ * P::I_;
      if (P::I_ > 0)
        P::blas_.multiply(chunk.count * P::B_, P::GH_, P::I_, Matrix<S>{x, P::I_}, {a.weight_ih, P::I_, true},
                          gates_x_.get(), P::GH_);
      if (P::is_persistent())
        P::run_persistent(chunk, "forward", [&](const Recurrence<ForwardSteps<S>>& recurrence) {
          return P::kernels_.forward(recurrence, P::plan_, P::math_, P::stream_);
        });
      else
        P::for_each_step(chunk, [&](ForwardSteps<S> step, int64_t place) {
          step.gates_x += place * P::B_ * P::GH_;
          run_step({step, gates_h_.get(), reset_h_.get()});
        });
    });
  }

 private:
  void run_step(const ForwardStep<S>& step) const {
    const int64_t H = P::H_, first = P::first_;
    const S* h = step.steps.is_first() ? step.steps.hx : step.steps.hy;
    const S* weight = step.steps.weight_hh;
    P::blas_.multiply(P::B_, first, H, Matrix<S>{h, H}, {weight, H, true}, step.gates_h, P::GH_);
    if (P::cell().resets_before) {
      check_launch(P::kernels_.stepwise_reset(step, P::stream_), "stepwise_reset");
      P::blas_.multiply(P::B_, H, H, Matrix<S>{step.reset_h, H}, {weight + first * H, H, true}, step.gates_h + first,
                        P::GH_);
    }
    check_launch(P::kernels_.stepwise_forward(step, P::stream_), "stepwise_forward");
  }

  const ForwardArgs<S>& args_;
  DeviceScratch<float> gates_x_;
  const DeviceScratch<float> c_, gates_h_;
  const DeviceScratch<S> reset_h_;
};

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
class BackwardPass : Pass<S> {
  using P = Pass<S>;

 public:
  BackwardPass(const Context& context, const BackwardArgs<S>& args)
      : P(context, args, true),
        args_(args),
        exact_(P::blas_.exact()),
        rows_(P::plan_.chunk * P::B_),
        grads_x_(context, rows_ * P::GH_),
        grads_h_(context, P::cell().grads_differ ? rows_ * P::GH_ : 0),
        h_before_(context, rows_ * P::H_),
        reset_h_(context, P::cell().resets_before ? rows_ * P::H_ : 0),
        active_x_(context, args.grad_weight_ih && args.lengths ? rows_ * P::I_ : 0),
        ones_(context, args.grad_bias_ih || args.grad_bias_hh ? rows_ : 0),
        grad_h_(context, P::B_ * P::H_),
        grad_c_(context, P::has_c() ? P::B_ * P::H_ : 0),
        grad_reset_(context, P::cell().resets_before ? P::B_ * P::H_ : 0),
        weight_ih_(context, args.grad_weight_ih, P::GH_ * P::I_, P::is_one_chunk()),
        weight_hh_(context, args.grad_weight_hh, P::GH_ * P::H_, P::is_one_chunk()),
        bias_ih_(context, args.grad_bias_ih, P::GH_, P::is_one_chunk()),
        bias_hh_(context, args.grad_bias_hh, P::GH_, P::is_one_chunk()) {
    if (ones_.get()) torch::stable::fill_(ones_.tensor(), 1.0);
  }

  void run() {
    const auto& a = args_;
    BackwardSteps<S> all{};
    P::fill(all, a, !a.reverse);
    all.grad_output = a.grad_output, all.grad_hy = a.grad_hy, all.grad_cy = a.grad_cy;
    all.output = a.output, all.saved = a.saved;
    all.grad_h = grad_h_.get(), all.grad_c = grad_c_.get(), all.grad_hx = a.grad_hx, all.grad_cx = a.grad_cx;
    all.grads_x = grads_x_.get(), all.grads_h = grads_h_.get() ? grads_h_.get() : grads_x_.get();
    all.h_before = h_before_.get(), all.reset_h = reset_h_.get();
    P::for_each_chunk(all, [&](const BackwardSteps<S>& chunk) {
      if (P::is_persistent())
        P::run_persistent(chunk, "backward", [&](const Recurrence<BackwardSteps<S>>& recurrence) {
          return P::kernels_.backward(recurrence, P::plan_, P::math_, P::stream_);
        });
      else
        P::for_each_step(chunk, [&](BackwardSteps<S> step, int64_t place) {
          const int64_t row = place * P::B_;
          step.grads_x += row * P::GH_, step.grads_h += row * P::GH_, step.h_before += row * P::H_;
          if (step.reset_h) step.reset_h += row * P::H_;
          run_step({step, grad_reset_.get()});
        });
      add_chunk(chunk);
    });
    if (!P::is_persistent()) check_launch(convert<S>({P::B_ * P::H_, grad_h_.get(), a.grad_hx}, P::stream_), "convert");
    for (const GrowingGrad<S>* grad : {&weight_ih_, &weight_hh_, &bias_ih_, &bias_hh_}) grad->finish(P::stream_);
  }

 private:
  void run_step(const BackwardStep<S>& step) const {
    const int64_t H = P::H_, GH = P::GH_, first = P::first_;
    const BackwardSteps<S>& s = step.steps;
    if (P::cell().resets_before) {
      check_launch(P::kernels_.stepwise_candidate(step, P::stream_), "stepwise_candidate");
      P::blas_.multiply(P::B_, H, H, Matrix<S>{s.grads_x + first, GH}, {s.weight_hh + first * H, H}, grad_reset_.get(),
                        H);
    }
    check_launch(P::kernels_.stepwise_backward(step, P::stream_), "stepwise_backward");
    P::blas_.multiply(P::B_, H, first, Matrix<S>{s.grads_h, GH}, {s.weight_hh, H}, s.grad_h, H, true);
  }

  // What is summed over the rows of a chunk, and its grad_x.
  void add_chunk(const BackwardSteps<S>& chunk) const {
    const auto& a = args_;
    const int64_t rows = chunk.count * P::B_, I = P::I_, H = P::H_, GH = P::GH_, first = P::first_;
    const bool more = !chunk.is_first();
    const int64_t at = chunk.lowest_time() * P::B_ * I;
    if (a.grad_x)
      P::blas_.multiply(rows, I, GH, Matrix<S>{chunk.grads_x, GH}, {a.weight_ih, I}, a.grad_x + at, I, a.adds_grad_x);
    if (!weight_hh_) return;
    const S* x = a.x + at;
    if (active_x_.get()) {  // what stands in the padding may be NaN, which no zero of grads_x takes away
      check_launch(copy_active<S>({chunk, int(I), x, active_x_.get()}, P::stream_), "copy_active");
      x = active_x_.get();
    }
    weight_ih_.add(
        0, [&](auto* c) { P::blas_.multiply(GH, I, rows, Matrix<S>{chunk.grads_x, GH, true}, {x, I}, c, I, more); });
    weight_hh_.add(0, [&](auto* c) {
      P::blas_.multiply(first, H, rows, Matrix<S>{chunk.grads_h, GH, true}, {chunk.h_before, H}, c, H, more);
    });
    if (P::cell().resets_before)
      weight_hh_.add(first * H, [&](auto* c) {
        P::blas_.multiply(H, H, rows, Matrix<S>{chunk.grads_h + first, GH, true}, {chunk.reset_h, H}, c, H, more);
      });
    const auto add_bias = [&](const GrowingGrad<S>& bias, const S* grads) {
      if (!bias) return;
      bias.add(0,
               [&](auto* c) { exact_.multiply(1, GH, rows, Matrix<S>{ones_.get(), rows}, {grads, GH}, c, GH, more); });
    };
    add_bias(bias_ih_, chunk.grads_x);
    add_bias(bias_hh_, chunk.grads_h);
  }

  const BackwardArgs<S>& args_;
  const Blas exact_;    // for sums: no factor is rounded
  const int64_t rows_;  // of a chunk
  const DeviceScratch<S> grads_x_, grads_h_, h_before_, reset_h_, active_x_;
  DeviceScratch<S> ones_;
  const DeviceScratch<float> grad_h_, grad_c_, grad_reset_;
  const GrowingGrad<S> weight_ih_, weight_hh_, bias_ih_, bias_hh_;
};

// Rows of [T, B, H] numbers, `row` numbers apart.
template <class S>
Tensor rows_at(const Context& context, const S* data, const LayerSizes& sizes, int64_t row) {
  const std::array<int64_t, 3> shape = {sizes.T, sizes.B, sizes.H}, strides = {sizes.B * row, row, 1};
  return torch::stable::from_blob(const_cast<S*>(data), shape, strides, context.input.device(), scalar_type<S>());
}

// Zeros for the initial states that are not given, for the time of one op.
template <class S>
class InitialStates {
 public:
  InitialStates(const Context& context, LayerArgs<S>& args) : zeros_(context, args.hx ? 0 : args.B * args.H) {
    if (args.hx) return;
    torch::stable::zero_(zeros_.tensor());
    args.hx = zeros_.get();
    if (context.cell.states > 1) args.cx = zeros_.get();
  }

 private:
  DeviceScratch<S> zeros_;
};

// The device of ops.h. The kernels read and write rows of output without gaps, in memory that nothing else is written
// to: where a layer's output has gaps or is the final state, they get a copy.
struct Cuda {
  template <class S>
  static void forward(const Context& context, const Directions<ForwardArgs<S>>& directions) {
    if constexpr (std::is_same<S, double>::value) {
      refuse_double();
    } else {
      for (size_t i = 0; i < directions.count; ++i) {
        ForwardArgs<S> args = directions.args[i];
        const bool has_gaps = args.output_row != args.H;
        const DeviceScratch<S> output(context, has_gaps || args.output == args.hy ? args.T * args.B * args.H : 0);
        if (output.get()) args.output = output.get();
        const InitialStates<S> states(context, args);
        ForwardPass<S>(context, args).run();
        if (!has_gaps) continue;
        Tensor to = rows_at(context, directions.args[i].output, args, args.output_row);
        torch::stable::copy_(to, rows_at(context, args.output, args, args.H));
      }
    }
  }

  template <class S>
  static void backward(const Context& context, BackwardArgs<S> args) {
    if constexpr (std::is_same<S, double>::value) {
      refuse_double();
    } else {
      const int64_t state = args.B * args.H, output = args.output_row != args.H ? args.T * state : 0;
      DeviceScratch<S> copied_output(context, output), copied_grad(context, args.grad_output ? output : 0);
      const DeviceScratch<S> grad_hx(context, args.grad_hx ? 0 : state);
      const DeviceScratch<S> grad_cx(context, context.cell.states > 1 && !args.grad_cx ? state : 0);
      const auto close_gaps = [&](const S*& from, DeviceScratch<S>& scratch) {
        if (!scratch.get()) return;
        Tensor to = rows_at(context, scratch.get(), args, args.H);
        torch::stable::copy_(to, rows_at(context, from, args, args.output_row));
        from = scratch.get();
      };
      const InitialStates<S> states(context, args);
      close_gaps(args.output, copied_output);
      close_gaps(args.grad_output, copied_grad);
      if (!args.grad_hx) args.grad_hx = grad_hx.get();
      if (!args.grad_cx) args.grad_cx = grad_cx.get();
      BackwardPass<S>(context, args).run();
    }
  }

 private:
  [[noreturn]] static void refuse_double() {
    fail("the CUDA kernels are for float32, bfloat16 and float16, got float64");
  }
};

}  // namespace fused_rnn

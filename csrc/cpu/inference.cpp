// Whole modules on the CPU where no backward can come. A streaming step is so short that the calls, checks and small
// tensors of one op for each layer would take longer than its arithmetic.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <exception>
#include <string>
#include <tuple>
#include <vector>

#include "../bridge.h"
#include "../ops.h"
#include "isa.h"
#include "parallel.h"

namespace fused_rnn {
namespace {

struct Result {
  Tensor output, hy;
  MaybeTensor cy;
};

// Initial states, contiguous, or null for zeros, and where the final ones go.
class States {
 public:
  States(CellKind cell, const MaybeTensor& hx, const MaybeTensor& cx, Sizes shape, const Tensor& x)
      : hx_(prepared(hx, "hx", shape, x)), cx_(prepared(cx, "cx", shape, x)), hy(allocate(x, shape, x.scalar_type())) {
    if (cell != CellKind::kLstm) return;
    require(hx.has_value() == cx.has_value(), "hx and cx must both be given, or neither");
    cy = allocate(x, shape, x.scalar_type());
  }

  // The states of one layer and direction, the k-th of rows [B, H]; `zeros` has as many.
  template <class S>
  void fill(ForwardArgs<S>& args, int64_t k, const S* zeros) const {
    const int64_t at = k * args.B * args.H;
    args.hx = hx_ ? const_data<S>(*hx_) + at : zeros;
    args.cx = !cy ? nullptr : cx_ ? const_data<S>(*cx_) + at : zeros;
    args.hy = data<S>(hy) + at;
    args.cy = cy ? data<S>(*cy) + at : nullptr;
  }
  bool are_zero() const { return !hx_; }

 private:
  MaybeTensor hx_, cx_;

 public:
  Tensor hy;
  MaybeTensor cy;
};

// The weights of one layer and direction.
struct Weights {
  Tensor ih, hh;
  MaybeTensor bias_ih, bias_hh;

  template <class S>
  void fill(ForwardArgs<S>& args) const {
    args.weight_ih = const_data<S>(ih);
    args.weight_hh = const_data<S>(hh);
    args.bias_ih = const_data<S>(bias_ih);
    args.bias_hh = const_data<S>(bias_hh);
  }
};

Weights prepared_weights(CellKind cell, const Tensor& ih, const Tensor& hh, const MaybeTensor& bias_ih,
                         const MaybeTensor& bias_hh, int64_t I, int64_t H, const Tensor& x) {
  const int64_t rows = gates(cell) * H;
  return {prepared(ih, "weight_ih", {rows, I}, x), prepared(hh, "weight_hh", {rows, H}, x),
          prepared(bias_ih, "bias_ih", {rows}, x), prepared(bias_hh, "bias_hh", {rows}, x)};
}

void require_cpu(const Tensor& input) {
  require_defined(input, "input");
  require(input.is_cpu(), "input must be on the CPU");
}

// What stands for initial states that are not given.
template <class S>
class Zeros {
 public:
  explicit Zeros(int64_t n) : data_(n) { std::fill_n(static_cast<S*>(data_), n, S(0.0f)); }
  operator const S*() const { return data_; }

 private:
  Scratch<S> data_;
};

// A cell's step is that of a layer with one; its output is its state.
std::tuple<Tensor, MaybeTensor> cell_inference(CellKind cell, const Tensor& input, const Tensor& weight_ih,
                                               const Tensor& weight_hh, const MaybeTensor& bias_ih,
                                               const MaybeTensor& bias_hh, const MaybeTensor& hx,
                                               const MaybeTensor& cx) {
  require_cpu(input);
  const bool batched = input.dim() == 2;
  if (!batched && input.dim() != 1) fail("input must be [B, I] or [I], got ", shape_text(input.sizes()));
  const Tensor x = as_contiguous(input);
  const int64_t B = batched ? x.size(0) : 1, I = x.size(batched ? 1 : 0), H = hidden_size(cell, weight_hh);
  const Weights weights = prepared_weights(cell, weight_ih, weight_hh, bias_ih, bias_hh, I, H, x);
  const States states(cell, hx, cx, batched ? Sizes({B, H}) : Sizes({H}), x);
  if (B > 0 && H > 0)
    with_storage_type(x.scalar_type(), [&](auto tag) {
      using S = typename decltype(tag)::type;
      const Zeros<S> zeros(states.are_zero() ? B * H : 0);
      ForwardArgs<S> args{};
      args.T = 1, args.B = B, args.I = I, args.H = H;
      args.x = const_data<S>(x);
      weights.fill(args);
      states.fill<S>(args, 0, zeros);
      args.output = args.hy;
      args.output_row = H;
      loops_of<S>(cell).forward(args);
    });
  return {states.hy, states.cy};
}

// Layers on top of each other, in one direction or both.
class Stack {
 public:
  Stack(CellKind cell, const Tensor& input, const std::vector<Tensor>& weights, bool bias, bool bidirectional,
        bool batch_first)
      : cell_(cell), directions_(bidirectional ? 2 : 1) {
    require_cpu(input);
    const bool batched = input.dim() == 3;
    if (!batched && input.dim() != 2) fail("input must be 2-D or 3-D, got ", shape_text(input.sizes()));
    const size_t each = bias ? 4 : 2;
    require(!weights.empty() && weights.size() % (each * directions_) == 0, "weights must be ", each,
            " for each layer and direction, got ", weights.size());
    H_ = hidden_size(cell, weights[1]);
    I_ = input.size(batched ? 2 : 1);
    const bool batch_leads = batched && batch_first;
    T_ = input.size(batch_leads ? 1 : 0);
    B_ = !batched ? 1 : input.size(batch_leads ? 0 : 1);
    require(T_ > 0, "input must have a step, got none");
    swapped_ = batch_leads && T_ > 1 && B_ > 1;  // with one step or one row, both forms are the same memory
    for (size_t k = 0; k < weights.size(); k += each) {
      const MaybeTensor bias_ih = bias ? MaybeTensor(weights[k + 2]) : std::nullopt;
      const MaybeTensor bias_hh = bias ? MaybeTensor(weights[k + 3]) : std::nullopt;
      const int64_t I = weights_.size() < size_t(directions_) ? I_ : directions_ * H_;
      weights_.push_back(prepared_weights(cell, weights[k], weights[k + 1], bias_ih, bias_hh, I, H_, input));
    }
    x_ = as_contiguous(swapped_ ? torch::stable::transpose(input, 0, 1) : input);  // a large copy, so after the checks
    const int64_t width = directions_ * H_;
    state_shape_ = batched ? std::vector<int64_t>{count(), B_, H_} : std::vector<int64_t>{count(), H_};
    output_shape_ = !batched      ? std::vector<int64_t>{T_, width}
                    : batch_leads ? std::vector<int64_t>{B_, T_, width}
                                  : std::vector<int64_t>{T_, B_, width};
  }

  Result run(const MaybeTensor& hx, const MaybeTensor& cx) const {
    const States states(cell_, hx, cx, state_shape_, x_);
    // Strided and not a transposed view, which could not be detached or changed in place.
    const std::array<int64_t, 3> swapped = {directions_ * H_, B_ * directions_ * H_, 1};
    const Tensor output = allocate(x_, output_shape_, x_.scalar_type(), swapped_ ? swapped.data() : nullptr);
    if (B_ > 0 && H_ > 0)
      with_storage_type(x_.scalar_type(), [&](auto tag) {
        using S = typename decltype(tag)::type;
        run_layers<S>(states, data<S>(output));
      });
    return {output, states.hy, states.cy};
  }

 private:
  int64_t count() const { return int64_t(weights_.size()); }  // of layers and directions

  template <class S>
  void run_layers(const States& states, S* output) const {
    const int64_t width = directions_ * H_, layers = count() / directions_;
    const Zeros<S> zeros(states.are_zero() ? B_ * H_ : 0);
    const Scratch<S> between(std::min<int64_t>(layers - 1, 2) * T_ * B_ * width);  // outputs of two layers, in turn
    const S* from = const_data<S>(x_);
    for (int64_t layer = 0; layer < layers; ++layer) {
      S* const to = layer + 1 == layers ? output : between + layer % 2 * T_ * B_ * width;
      std::array<ForwardArgs<S>, 2> directions{};
      for (int64_t direction = 0; direction < directions_; ++direction) {
        const int64_t k = layer * directions_ + direction;
        ForwardArgs<S>& args = directions[size_t(direction)];
        args.T = T_, args.B = B_, args.I = layer ? width : I_, args.H = H_;
        args.reverse = direction == 1;
        args.x = from;
        weights_[size_t(k)].fill(args);
        states.fill<S>(args, k, zeros);
        args.output = to + direction * H_;
        args.output_row = width;
      }
      run_directions(directions);
      from = to;
    }
  }

  // Two or three threads take a direction each and never meet. More of them divide each direction, if it is worth that.
  template <class S>
  void run_directions(const std::array<ForwardArgs<S>, 2>& directions) const {
    const auto forward = loops_of<S>(cell_).forward;
    if (directions_ == 1) return forward(directions[0]);
    const double flops = 2.0 * double(T_ * B_) * double(gates(cell_) * H_) * double(directions[0].I + H_);
    const int64_t together = workers_for(2 * flops, 2 * flops), alone = workers_for(flops, flops / double(T_));
    if (together == 1 || (together > 3 && alone > 1)) {
      forward(directions[0]);
      return forward(directions[1]);
    }
    std::array<std::string, 2> errors;  // a team's body must not throw
    run_team(2, [&](const Worker& worker) {
      for (auto i = size_t(worker.begin); i < size_t(worker.end); ++i) {
        try {
          forward(directions[i]);
        } catch (const std::exception& error) {
          errors[i] = error.what();
        }
      }
    });
    for (const std::string& error : errors)
      if (!error.empty()) fail(error);
  }

  CellKind cell_;
  int64_t directions_, T_, B_, I_, H_;
  bool swapped_;  // batch and time of input and output are
  Tensor x_;      // [T, B, I], contiguous
  std::vector<Weights> weights_;
  std::vector<int64_t> state_shape_, output_shape_;
};

// ---- The ops ----

std::tuple<Tensor, Tensor, Tensor> lstm_inference(Tensor input, std::vector<Tensor> weights, MaybeTensor hx,
                                                  MaybeTensor cx, bool bias, bool bidirectional, bool batch_first) {
  const Result r = Stack(CellKind::kLstm, input, weights, bias, bidirectional, batch_first).run(hx, cx);
  return {r.output, r.hy, *r.cy};
}

std::tuple<Tensor, Tensor> gru_inference(Tensor input, std::vector<Tensor> weights, MaybeTensor hx, bool reset_after,
                                         bool bias, bool bidirectional, bool batch_first) {
  const Result r = Stack(gru_kind(reset_after), input, weights, bias, bidirectional, batch_first).run(hx, std::nullopt);
  return {r.output, r.hy};
}

std::tuple<Tensor, Tensor> lstm_cell_inference(Tensor input, Tensor weight_ih, Tensor weight_hh, MaybeTensor bias_ih,
                                               MaybeTensor bias_hh, MaybeTensor hx, MaybeTensor cx) {
  const auto [hy, cy] = cell_inference(CellKind::kLstm, input, weight_ih, weight_hh, bias_ih, bias_hh, hx, cx);
  return {hy, *cy};
}

Tensor gru_cell_inference(Tensor input, Tensor weight_ih, Tensor weight_hh, MaybeTensor bias_ih, MaybeTensor bias_hh,
                          MaybeTensor hx, bool reset_after) {
  const CellKind cell = gru_kind(reset_after);
  return std::get<0>(cell_inference(cell, input, weight_ih, weight_hh, bias_ih, bias_hh, hx, std::nullopt));
}

}  // namespace
}  // namespace fused_rnn

STABLE_TORCH_LIBRARY_IMPL(fused_rnn, CPU, m) {
  m.impl("lstm_inference", TORCH_BOX(&fused_rnn::lstm_inference));
  m.impl("gru_inference", TORCH_BOX(&fused_rnn::gru_inference));
  m.impl("lstm_cell_inference", TORCH_BOX(&fused_rnn::lstm_cell_inference));
  m.impl("gru_cell_inference", TORCH_BOX(&fused_rnn::gru_cell_inference));
}

// Runs layers with the CPU loops of this processor, without torch: reads problems from stdin and writes all results to
// stdout, as the numbers lie in memory. With the argument "isa" it only says which instruction set that is, and how it
// lays out the bfloat16 and int8 weights of each cell.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <vector>

#include "../../csrc/cpu/isa.h"
#include "../../csrc/cpu/parallel.h"

namespace fused_rnn {

// One thread that plays a team of one: PyTorch's threads are not here.
int64_t workers_for(double, double) { return 1; }
void Team::wait(int64_t) { std::abort(); }
void run_team(int64_t count, void (*body)(const Worker&, void* context), void* context) {
  Team team(count);
  body({team, 0, count, count}, context);
}

namespace {

struct Header {
  int64_t cell, scalar_bytes, is_bfloat16, factors, T, B, I, H, projection, reverse, ragged, bias;
};

template <class T>
std::vector<T> read(int64_t n) {
  std::vector<T> numbers(static_cast<size_t>(n));
  if (n > 0 && std::fread(numbers.data(), sizeof(T), numbers.size(), stdin) != numbers.size()) std::abort();
  return numbers;
}

// Numbers that a loop has to write: NaN until then.
template <class S>
struct Result : std::vector<S> {
  explicit Result(int64_t n) : std::vector<S>(static_cast<size_t>(n), S(std::nanf(""))) {}
  S* get() { return this->empty() ? nullptr : this->data(); }
  void write() const { std::fwrite(this->data(), sizeof(S), this->size(), stdout); }
};

template <class S>
void run(const Header& d) {
  const CellTraits& cell = kCells[size_t(d.cell)];
  const int64_t P = d.projection ? d.projection : d.H, rows = cell.gates * d.H, h = d.B * P, steps = d.T * d.B;
  const int64_t bias = d.bias ? rows : 0, c = cell.states > 1 ? d.B * d.H : 0, projection = d.projection * d.H;

  const auto lengths = read<int64_t>(d.ragged ? d.B : 0);
  std::vector<int64_t> active(size_t(d.ragged ? d.T : 0));  // one past the last active row of each step
  for (size_t b = 0; b < lengths.size(); ++b)
    for (int64_t t = 0; t < lengths[b]; ++t) active[size_t(t)] = int64_t(b + 1);
  const auto factors = Float32Factors(d.factors);
  const Quantized quantized = factors == Float32Factors::kQuantizedInt8       ? Quantized::kInt8
                              : factors == Float32Factors::kQuantizedBFloat16 ? Quantized::kBFloat16
                                                                              : Quantized::kNone;
  const bool is_plain = quantized == Quantized::kNone, is_int8 = quantized == Quantized::kInt8;
  const auto x = read<S>(steps * d.I);
  const auto scale_ih = read<float>(is_int8 ? rows : 0), scale_hh = read<float>(is_int8 ? rows : 0);
  const auto weight_ih = read<S>(is_plain ? rows * d.I : 0);
  const auto weight_hh = read<S>(is_plain ? rows * P : 0);
  const auto panels = [&](int64_t K) {  // as the layout of these loops has them
    return read<char>(is_plain ? 0 : quantized_elements(cell, quantized, K, d.H) * (is_int8 ? 1 : 2));
  };
  const auto panels_ih = panels(d.I), panels_hh = panels(d.H);
  const auto bias_ih = read<S>(bias), bias_hh = read<S>(bias), weight_hr = read<S>(projection);
  const auto hx = read<S>(h), cx = read<S>(c);
  const auto grad_output = read<S>(steps * P), grad_hy = read<S>(h), grad_cy = read<S>(c);

  Result<S> output(steps * P), hy(h), cy(c);
  Result<accumulate_t<S>> saved(steps * cell.saved * d.H);
  const auto fill = [&](LayerArgs<S>& args) {
    args.T = d.T, args.B = d.B, args.I = d.I, args.H = d.H, args.P = args.output_row = P;
    args.reverse = d.reverse;
    args.lengths = d.ragged ? lengths.data() : nullptr;
    args.active = d.ragged ? active.data() : nullptr;
    args.rows = d.ragged ? std::accumulate(active.begin(), active.end(), int64_t(0)) : steps;
    args.x = x.data(), args.weight_ih = weight_ih.data(), args.weight_hh = weight_hh.data();
    args.quantized_ih = {panels_ih.data(), is_int8 ? scale_ih.data() : nullptr};
    args.quantized_hh = {panels_hh.data(), is_int8 ? scale_hh.data() : nullptr};
    args.weight_hr = projection ? weight_hr.data() : nullptr;
    args.hx = hx.data(), args.cx = cx.data();
  };
  ForwardArgs<S> forward{};
  fill(forward);
  if (bias) forward.bias_ih = bias_ih.data(), forward.bias_hh = bias_hh.data();
  forward.output = output.get();
  forward.hy = hy.get(), forward.cy = cy.get(), forward.saved = saved.get();
  loops_of<S>(cell, factors).forward(forward);
  if (!is_plain) {
    for (const Result<S>* result : {&output, &hy, &cy}) result->write();
    return;
  }

  Result<S> grad_x(steps * d.I), grad_weight_ih(rows * d.I), grad_weight_hh(rows * P);
  Result<S> grad_bias_ih(bias), grad_bias_hh(bias), grad_weight_hr(projection), grad_hx(h), grad_cx(c);
  BackwardArgs<S> backward{};
  fill(backward);
  backward.grad_output = grad_output.data(), backward.grad_hy = grad_hy.data(), backward.grad_cy = grad_cy.data();
  backward.output = output.data(), backward.saved = saved.data(), backward.grad_x = grad_x.get();
  backward.grad_weight_ih = grad_weight_ih.get(), backward.grad_weight_hh = grad_weight_hh.get();
  backward.grad_bias_ih = grad_bias_ih.get(), backward.grad_bias_hh = grad_bias_hh.get();
  backward.grad_weight_hr = grad_weight_hr.get();
  backward.grad_hx = grad_hx.get(), backward.grad_cx = grad_cx.get();
  loops_of<S>(cell, factors).backward(backward);

  for (const Result<S>* result : {&output, &hy, &cy, &grad_x, &grad_weight_ih, &grad_weight_hh, &grad_bias_ih,
                                  &grad_bias_hh, &grad_weight_hr, &grad_hx, &grad_cx})
    result->write();
}

}  // namespace
}  // namespace fused_rnn

int main(int count, char**) {
  using namespace fused_rnn;
  if (count > 1) {
    std::puts(instruction_set().name);
    for (const Quantized type : {Quantized::kBFloat16, Quantized::kInt8})
      for (const CellTraits& cell : kCells) {
        const PanelLayout& layout = panel_layout(cell, type);
        std::printf("%d %d %d %d\n", int(layout.lanes), int(layout.units), int(layout.tile), int(layout.offset));
      }
    return 0;
  }
  Header header;
  while (std::fread(&header, sizeof(header), 1, stdin) == 1) {
    switch (header.scalar_bytes) {
      case 8: run<double>(header); break;
      case 4: run<float>(header); break;
      default: header.is_bfloat16 ? run<BFloat16>(header) : run<Float16>(header);
    }
  }
}

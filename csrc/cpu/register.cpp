// CPU implementations of the ops.
#include <array>
#include <exception>
#include <string>

#include "../ops.h"
#include "isa.h"
#include "parallel.h"

namespace fused_rnn {

namespace {

// Two or three threads run one direction each, without synchronisation. More threads divide each direction, where that
// pays.
template <class S>
bool run_together(const Context& context, const ForwardArgs<S>& args) {
  const double flops = 2.0 * double(args.rows) * double(context.cell.gates * args.H) * double(args.I + args.H);
  const int64_t together = workers_for(2 * flops, 2 * flops), alone = workers_for(flops, flops / double(args.T));
  return together > 1 && (together <= 3 || alone == 1);
}

// A call of fewer rows (step, batch) is bound by reading weights, which float32 uses without packing them.
constexpr int64_t kReducedRows = 65;

int64_t cpu_reduced_rows() { return instruction_set().loops().reduced[0].forward ? kReducedRows : 0; }

// The factors of the products in a float32 call. `rows`: of the batch, at all steps.
Float32Factors factors_of(int64_t rows, bool reduced_precision, Quantized quantized) {
  const int64_t least = cpu_reduced_rows();
  const bool reduces = quantized == Quantized::kNone && reduced_precision && least > 0 && rows >= least;
  return reduces ? Float32Factors::kBFloat16 : factors_of(quantized);
}

template <class S>
class CpuPass {
 public:
  CpuPass(const Context& context, const LayerSizes& sizes, bool)
      : context_(context),
        loops_(loops_of<S>(context.cell, factors_of(sizes.rows, context.reduced_precision, context.quantized))) {}

  int64_t together() const { return 1; }

  void run(const Layers<ForwardArgs<S>>& directions) const {
    const auto run = loops_.forward;
    if (directions.size() == 1 || !run_together(context_, directions[0])) {
      for (const ForwardArgs<S>& args : directions) run(args);
      return;
    }
    std::array<std::string, 2> errors;  // a team's body must not throw
    run_team(2, [&](const Worker& worker) {
      for (auto i = size_t(worker.begin); i < size_t(worker.end); ++i) {
        try {
          run(directions[i]);
        } catch (const std::exception& error) {
          errors[i] = error.what();
        }
      }
    });
    for (const std::string& error : errors)
      if (!error.empty()) fail(error);
  }

  void run(const Layers<BackwardArgs<S>>& directions) const {
    for (const BackwardArgs<S>& args : directions) loops_.backward(args);
  }

 private:
  const Context& context_;
  const CellLoops<S>& loops_;
};

struct Cpu {
  template <class S>
  using Pass = CpuPass<S>;
  static constexpr bool kSavesAccumulated = true;
  static constexpr QuantizedElements kQuantizedElements = quantized_elements;
};

std::string cpu_instruction_set() { return instruction_set().name; }

std::string cpu_plan(std::string cell, ScalarType dtype, int64_t T, int64_t B, int64_t I, int64_t H, bool training,
                     int64_t flags) {
  for (const int64_t size : {T, B, I, H})
    require(0 <= size && size <= (int64_t(1) << 40), "sizes must be from 0 to 2^40, got ", size);
  LayerSizes sizes{T, B, I, H, 0};
  if (__builtin_mul_overflow(T, B, &sizes.rows)) sizes.rows = INT64_MAX;
  const Quantized quantized = quantized_of(flags);
  const Float32Factors factors = factors_of(sizes.rows, flags & kReducedPrecision, quantized);
  const auto workers = with_storage_type(
      dtype, [&](auto tag) { return loops_of<typename decltype(tag)::type>(cell_named(cell), factors).workers; });
  const int64_t forward = workers(sizes, false),
                backward = quantized != Quantized::kNone ? forward : workers(sizes, true);
  std::string plan = cpu_instruction_set();
  if (factors == Float32Factors::kBFloat16) plan += ", factors of bfloat16";
  if (quantized != Quantized::kNone) plan += quantized == Quantized::kInt8 ? ", int8 weights" : ", bfloat16 weights";
  plan += ", " + std::to_string(forward) + (forward > 1 ? " threads" : " thread");
  if (training && backward != forward) plan += "; backward: " + std::to_string(backward);
  return plan;
}

std::vector<int64_t> cpu_panel_layout(std::string cell, int64_t flags) {
  const PanelLayout& layout = panel_layout(cell_named(cell), quantized_of(flags));
  return {layout.lanes, layout.units, layout.tile, layout.offset};
}

bool poisoned() {
#ifdef FUSED_RNN_POISON
  return true;
#else
  return false;
#endif
}

}  // namespace
}  // namespace fused_rnn

STABLE_TORCH_LIBRARY_IMPL(fused_rnn, CPU, m) {
  fused_rnn::Ops<fused_rnn::Cpu>::implement(m);
  m.impl("layer_inference", TORCH_BOX(&fused_rnn::Ops<fused_rnn::Cpu>::layer_inference));
}

STABLE_TORCH_LIBRARY_IMPL(fused_rnn, CompositeExplicitAutograd, m) {
  m.impl("cpu_instruction_set", TORCH_BOX(&fused_rnn::cpu_instruction_set));
  m.impl("cpu_plan", TORCH_BOX(&fused_rnn::cpu_plan));
  m.impl("cpu_reduced_rows", TORCH_BOX(&fused_rnn::cpu_reduced_rows));
  m.impl("cpu_panel_layout", TORCH_BOX(&fused_rnn::cpu_panel_layout));
  m.impl("poisoned", TORCH_BOX(&fused_rnn::poisoned));
}

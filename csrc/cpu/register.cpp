// CPU implementations of the ops.
#include <algorithm>
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
  const double flops = 2.0 * double(args.rows) * double(context.cell.gates * args.H) * double(args.I + args.P);
  const int64_t together = workers_for(2 * flops, 2 * flops), alone = workers_for(flops, flops / double(args.T));
  return together > 1 && (together <= 3 || alone == 1);
}

// A call of fewer rows (step, batch) is bound by reading weights, which float32 uses without packing them.
constexpr int64_t kReducedRows = 65;

int64_t reduced_rows(const InstructionSet& set) { return set.loops().reduced[0].forward ? kReducedRows : 0; }
int64_t cpu_reduced_rows() { return reduced_rows(instruction_set()); }

// The type of the factors of products in a float32 call: that of quantised weights, or reduced from kReducedRows on.
Float32Factors factors_of(const InstructionSet& set, int64_t rows, int64_t flags) {
  const int64_t least = reduced_rows(set);
  const Quantized quantized = quantized_of(flags);
  const bool reduces = quantized == Quantized::kNone && flags & kReducedPrecision && least > 0 && rows >= least;
  return reduces ? Float32Factors::kBFloat16 : factors_of(quantized);
}

template <class S>
const CellLoops<S>& loops_of_call(const CellTraits& cell, int64_t rows, int64_t flags) {
  const InstructionSet& set = instruction_set(set_of(flags));
  return loops_of<S>(cell, factors_of(set, rows, flags), set);
}

template <class S>
class CpuPass {
 public:
  CpuPass(const Context& context, const LayerSizes& sizes, bool)
      : context_(context), loops_(loops_of_call<S>(context.cell, sizes.rows, context.flags)) {}

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

std::string cpu_plan(std::string cell, ScalarType dtype, int64_t T, int64_t B, int64_t I, int64_t H, int64_t projection,
                     bool training, int64_t flags) {
  for (const int64_t size : {T, B, I, H, projection})
    require(0 <= size && size <= (int64_t(1) << 40), "sizes must be from 0 to 2^40, got ", size);
  LayerSizes sizes{T, B, I, H, projection ? projection : H, 0};
  if (__builtin_mul_overflow(T, B, &sizes.rows)) sizes.rows = INT64_MAX;
  const Quantized quantized = quantized_of(flags);
  const InstructionSet& set = instruction_set(set_of(flags));
  const Float32Factors factors = factors_of(set, sizes.rows, flags);
  const auto workers = with_storage_type(
      dtype, [&](auto tag) { return loops_of<typename decltype(tag)::type>(cell_named(cell), factors, set).workers; });
  const int64_t forward = workers(sizes, false);
  const int64_t backward = quantized != Quantized::kNone ? forward : workers(sizes, true);
  std::string plan = set.name;
  if (flags & (kJoins | kProjects)) plan += flags & kJoins ? ", x and h joined" : ", x projected";
  if (factors == Float32Factors::kBFloat16) plan += ", factors of bfloat16";
  if (quantized != Quantized::kNone) plan += quantized == Quantized::kInt8 ? ", int8 weights" : ", bfloat16 weights";
  plan += ", " + std::to_string(forward) + (forward > 1 ? " threads" : " thread");
  if (training && backward != forward) plan += "; backward: " + std::to_string(backward);
  return plan;
}

// The sets that are here, in the order of their numbers from 1. Empty in place of one that is not here or has the same
// loops for such a call as one before it.
std::vector<std::string> cpu_instruction_sets(std::string cell, ScalarType dtype, int64_t flags) {
  std::vector<std::string> names;
  with_storage_type(dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    std::vector<void (*)(const ForwardArgs<S>&)> known;
    for (const auto& [number, set] : instruction_sets_here()) {
      const auto forward = loops_of<S>(cell_named(cell), factors_of(*set, INT64_MAX, flags), *set).forward;
      const bool is_new = std::find(known.begin(), known.end(), forward) == known.end();
      known.push_back(forward);
      names.resize(size_t(number));
      if (is_new) names.back() = set->name;
    }
  });
  return names;
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
  m.impl("cpu_instruction_sets", TORCH_BOX(&fused_rnn::cpu_instruction_sets));
  m.impl("cpu_plan", TORCH_BOX(&fused_rnn::cpu_plan));
  m.impl("cpu_reduced_rows", TORCH_BOX(&fused_rnn::cpu_reduced_rows));
  m.impl("cpu_panel_layout", TORCH_BOX(&fused_rnn::cpu_panel_layout));
  m.impl("poisoned", TORCH_BOX(&fused_rnn::poisoned));
}

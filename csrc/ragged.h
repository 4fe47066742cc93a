// Batches whose rows end at different steps: padded, with the length of each row, or a packed sequence. A row of a
// padded batch may hold several sequences.
#pragma once

#include <numeric>
#include <string>
#include <vector>

#include "recurrence.h"
#include "tensors.h"

namespace fused_rnn {

class Ragged {
 public:
  // lengths [B] of a padded batch of T steps, on the device of the input.
  void read_lengths(Tensor given, int64_t T, int64_t B, const Tensor& input) {
    prepare(given, {"lengths"}, {B}, ScalarType::Long, input);
    if (!input.is_cpu()) {
      on_device_ = given;
      return;
    }
    lengths_.assign(const_data<int64_t>(given), const_data<int64_t>(given) + B);
    for (int64_t b = 0; b < B; ++b) {
      const int64_t length = lengths_[size_t(b)];
      require(0 <= length && length <= T, "lengths[", b, "] must be from 0 to T = ", T, ", got ", length);
    }
  }

  // resets [T, B] of a padded batch, on the device of the input.
  void read_resets(Tensor given, int64_t T, int64_t B, const Tensor& input) {
    prepare(given, {"resets"}, {T, B}, ScalarType::Bool, input);
    resets_ = given;
  }

  // On the CPU, after read_lengths and all other checks, as it takes memory for each step: the rows of each step.
  void count_active(int64_t T) {
    if (lengths_.empty()) return;
    try {
      active_.assign(size_t(T), 0);
    } catch (const std::exception&) {
      fail_out_of_memory(true, bytes_of({T}, sizeof(int64_t)), "for the rows of " + std::to_string(T) + " steps");
    }
    int64_t t = 0;  // all steps before it have an active row from b on
    for (int64_t b = int64_t(lengths_.size()); b-- > 0;)
      for (; t < lengths_[size_t(b)]; ++t) active_[size_t(t)] = b + 1;
  }

  // batch_sizes [T] of a packed sequence, whose data, the input, is [N, I]: the number of rows that are active at each
  // step. They are positive, never grow and sum to N.
  void read_batch_sizes(const MaybeTensor& given, const Tensor& input) {
    require(input.is_cpu(), "a packed sequence must be on cpu, got ", device_text(input));
    require(given && given->defined() && given->dim() == 1, "batch_sizes of a packed sequence must be a tensor [T]");
    Tensor batch_sizes = *given;
    prepare(batch_sizes, {"batch_sizes"}, {batch_sizes.size(0)}, ScalarType::Long, input);
    const int64_t N = input.size(0), *const sizes = const_data<int64_t>(batch_sizes);
    int64_t offset = 0;
    for (int64_t t = 0; t < batch_sizes.size(0); ++t) {
      const int64_t before = t > 0 ? sizes[t - 1] : sizes[t];
      require(0 < sizes[t] && sizes[t] <= before, "batch_sizes must be positive and never grow, got ", before, " and ",
              sizes[t]);
      require(sizes[t] <= N - offset, "batch_sizes must sum to N = ", N, ", got more");
      active_.push_back(sizes[t]);
      offsets_.push_back(offset);
      offset += sizes[t];
    }
    require(offset == N, "batch_sizes must sum to N = ", N, ", got ", offset);
    for (size_t t = active_.size(); t-- > 0;) lengths_.resize(size_t(active_[t]), int64_t(t + 1));
  }

  int64_t T() const { return int64_t(active_.size()); }  // of a packed sequence
  int64_t B() const { return int64_t(lengths_.size()); }

  template <class S>
  void fill(LayerArgs<S>& args) const {
    const auto data = [](const std::vector<int64_t>& of) { return of.empty() ? nullptr : of.data(); };
    args.lengths = on_device_ ? const_data<int64_t>(*on_device_) : data(lengths_);
    args.active = data(active_);
    args.offsets = data(offsets_);
    args.resets = resets_ ? const_data<uint8_t>(*resets_) : nullptr;
    args.rows = args.T * args.B;
    if (args.active) args.rows = std::accumulate(active_.begin(), active_.end(), int64_t(0));
  }

 private:
  std::vector<int64_t> lengths_, active_, offsets_;  // on the CPU, as in LayerArgs
  MaybeTensor on_device_;                            // lengths
  MaybeTensor resets_;
};

}  // namespace fused_rnn

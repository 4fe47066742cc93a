#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "parallel.h"

namespace fused_rnn {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kKeptBytes = size_t(64) << 20;  // of one thread
constexpr int kKeptBlocks = 32;

// AddressSanitizer sees an access past a block's end, or after it was freed, only in blocks that are neither rounded up
// nor kept.
#ifdef __SANITIZE_ADDRESS__
constexpr bool kUnderSanitizer = true;
#else
constexpr bool kUnderSanitizer = false;
#endif

// std::aligned_alloc takes multiples of the alignment only.
void* aligned(size_t bytes) {
  void* memory = nullptr;
  return posix_memalign(&memory, kAlignment, bytes) == 0 ? memory : nullptr;
}

// Before each block stands its size, in a line of its own to keep the alignment.
size_t& size_of(void* memory) { return *reinterpret_cast<size_t*>(static_cast<char*>(memory) - kAlignment); }
void release(void* memory) { std::free(static_cast<char*>(memory) - kAlignment); }

// The blocks that a thread has freed and may use again.
class Kept {
 public:
  ~Kept() {
    while (count_ > 0) release(blocks_[--count_]);
  }

  // A block of at least `bytes` and less than twice that, or null.
  void* take(size_t bytes) {
    for (int i = 0; i < count_; ++i) {
      void* const block = blocks_[i];
      if (size_of(block) < bytes || size_of(block) / 2 > bytes) continue;
      blocks_[i] = blocks_[--count_];
      bytes_ -= size_of(block);
      return block;
    }
    return nullptr;
  }

  void keep(void* block) {
    while (count_ > 0 && (count_ == kKeptBlocks || bytes_ + size_of(block) > kKeptBytes)) {  // the oldest goes first
      bytes_ -= size_of(blocks_[0]);
      release(blocks_[0]);
      std::memmove(blocks_, blocks_ + 1, --count_ * sizeof(blocks_[0]));
    }
    if (size_of(block) > kKeptBytes) return release(block);
    bytes_ += size_of(block);
    blocks_[count_++] = block;
  }

 private:
  void* blocks_[kKeptBlocks];
  int count_ = 0;
  size_t bytes_ = 0;
};

thread_local Kept kept;

}  // namespace

void* allocate_scratch(size_t bytes) {
  if (!kUnderSanitizer) bytes = (bytes + kAlignment) / kAlignment * kAlignment;
  void* memory = kept.take(bytes);
  if (!memory) {
    void* const start = aligned(bytes + kAlignment);
    if (!start)  // begins as PyTorch's message, by which tools that look for a smaller batch recognise it
      throw std::runtime_error("DefaultCPUAllocator: can't allocate memory: you tried to allocate " +
                               std::to_string(bytes) + " bytes, for the intermediate results of a layer");
    memory = static_cast<char*>(start) + kAlignment;
    size_of(memory) = bytes;
  }
#ifdef FUSED_RNN_POISON
  std::memset(memory, 0xff, bytes);  // all bits set is NaN in every type
#endif
  return memory;
}

void free_scratch(void* memory) { kUnderSanitizer ? release(memory) : kept.keep(memory); }

}  // namespace fused_rnn

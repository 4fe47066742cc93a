#include "caches.h"

#include <unistd.h>

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace fused_rnn {
namespace {

constexpr int64_t kUnknown = 512 * 1024;  // where the system does not say: what most have at least

int64_t ask() {
  if (const char* given = std::getenv("FUSED_RNN_L2_KIB"); given && *given) {
    char* end;
    const long long kib = std::strtoll(given, &end, 10);
    if (*end || kib < 1 || kib > INT32_MAX)
      throw std::runtime_error("FUSED_RNN_L2_KIB=" + std::string(given) +
                               " is not the size of a second-level cache in KiB: a whole number of at least 1");
    return kib * 1024;
  }
#ifdef _SC_LEVEL2_CACHE_SIZE
  if (const long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE); bytes > 0) return bytes;
#endif
  return kUnknown;
}

}  // namespace

int64_t second_level_cache() {
  static const int64_t bytes = ask();
  return bytes;
}

}  // namespace fused_rnn

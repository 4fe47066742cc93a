// Products of tiles by AMX, as instructions or with FUSED_RNN_AMX_EMULATED, written to stdout as the numbers lie in
// memory. Exits with 2 where the system refuses AMX.
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>
#include <random>

#include "../../csrc/cpu/amx.h"

using namespace fused_rnn;

int main() {
#ifndef FUSED_RNN_AMX_EMULATED
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0) return 2;
#endif
  const amx::InUse in_use;
  std::mt19937 random(0);
  struct Exponents {
    unsigned low, high;
  };
  constexpr Exponents kSubnormal{0, 127};  // factors, products and sums among others; nothing overflows
  for (int rows = 1; rows <= amx::kRows; ++rows)
    for (const Exponents exponents : {Exponents{123, 131}, Exponents{97, 157}, kSubnormal}) {
      uint16_t left[amx::kRows][32], right[amx::kRows][32];
      float sums[amx::kRows][16];
      const auto drawn = [&] {
        const auto exponent = uint32_t(exponents.low + random() % (exponents.high - exponents.low));
        return uint32_t((random() & 0x8000u) | exponent << 7 | (random() & 0x7fu));
      };
      for (int r = 0; r < amx::kRows; ++r) {
        for (int i = 0; i < 32; ++i) left[r][i] = uint16_t(drawn()), right[r][i] = uint16_t(drawn());
        for (float& sum : sums[r]) {
          const uint32_t bits = drawn() << 16;
          std::memcpy(&sum, &bits, sizeof(sum));
        }
      }
      amx::shape_for(rows);
      amx::load<0>(sums, amx::kRowBytes), amx::load<4>(left, amx::kRowBytes), amx::load<5>(right, amx::kRowBytes);
      amx::add_product<0, 4, 5>(BFloat16()), amx::add_product<0, 4, 5>(BFloat16());
      amx::store<0>(sums, amx::kRowBytes);
      if (std::fwrite(sums, sizeof(sums), 1, stdout) != 1) return 1;
      // The same bits as int8.
      amx::zero<1>(), amx::add_product<1, 4, 5>(int8_t()), amx::add_product<1, 4, 5>(int8_t());
      amx::store<1>(sums, amx::kRowBytes);
      if (std::fwrite(sums, sizeof(sums), 1, stdout) != 1) return 1;
    }
}

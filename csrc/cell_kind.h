// The cells by name, where code is not compiled for each.
#pragma once

#include <cstdint>

#include "cells.h"

namespace fused_rnn {

enum class CellKind { kLstm, kGru, kGruResetBefore };

inline int64_t gates(CellKind cell) {
  return cell == CellKind::kLstm ? LstmCell<float>::kGates : GruCell<float>::kGates;
}

// What a forward keeps per step, row and unit.
inline int64_t saved_per_unit(CellKind cell) {
  switch (cell) {
    case CellKind::kLstm: return LstmCell<float>::kSaved;
    case CellKind::kGru: return GruCell<float>::kSaved;
    default: return GruResetBeforeCell<float>::kSaved;
  }
}

}  // namespace fused_rnn

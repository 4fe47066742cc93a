// The cells by name, where code is not compiled for each.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cells.h"

namespace fused_rnn {

enum class CellKind { kLstm, kGru, kGruResetBefore };

inline CellKind cell_named(const std::string& name) {
  if (name == "lstm") return CellKind::kLstm;
  if (name == "gru") return CellKind::kGru;
  if (name == "gru(reset_after=False)") return CellKind::kGruResetBefore;
  throw std::runtime_error("cell '" + name + "' is not one of lstm, gru, gru(reset_after=False)");
}

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

// A cell as data, for code that is not compiled for each cell.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "cells.h"

namespace fused_rnn {

struct CellTraits {
  const char* name;
  size_t index;        // in AllCells, and in every table that is made from it
  int gates;           // G
  int saved;           // numbers that a forward keeps per step, row and unit
  int states;          // 1: h, 2: h and c
  bool resets_before;  // the last gate multiplies r * h instead of h
  bool grads_differ;   // the backward gives gates_x and gates_h different gradients
  bool projects;       // h may be projected after the step

  // Rows of weight_hh that multiply h itself, for H units.
  int64_t hidden_rows(int64_t H) const { return (gates - resets_before) * H; }
};

template <template <class> class... Cells>
constexpr auto traits_of(CellList<Cells...>) {
  size_t index = 0;
  return std::array<CellTraits, sizeof...(Cells)>{CellTraits{
      Cells<float>::kName, index++, Cells<float>::kGates, Cells<float>::kSaved, Cells<float>::kSavedCell < 0 ? 1 : 2,
      Cells<float>::kResetBefore, Cells<float>::kGradsDiffer, Cells<float>::kProjects}...};
}

inline constexpr auto kCells = traits_of(AllCells{});

// Throws std::runtime_error for a name that no cell has.
inline const CellTraits& cell_named(const std::string& name) {
  std::string names;
  for (const CellTraits& cell : kCells) {
    if (name == cell.name) return cell;
    names += (names.empty() ? "" : ", ") + std::string(cell.name);
  }
  throw std::runtime_error("cell '" + name + "' is not one of " + names);
}

}  // namespace fused_rnn

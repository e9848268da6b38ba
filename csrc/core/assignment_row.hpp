// The inner loop of a soft assignment: one source point against all target points.
#pragma once
#include <cstdint>

#include "core/assignment_lanes.hpp"

namespace dlc {

struct AssignmentRow {
  const float* affinity;   // a_j, blocks * kLanes of them, as of all that follows
  const float* target[3];  // x, y and z of the target points
  float* columns[4];       // added to: exp(a_j - sharpness |moved - target_j|^2 - shift), and these times source
  float moved[3];          // the source point in the target's frame
  float source[3];         // and in its own
  float sharpness, shift;  // a_j <= shift
  int64_t blocks;

  AssignmentRow from_column(int64_t j) const {
    AssignmentRow row = *this;
    row.affinity += j;
    for (const float*& coordinate : row.target) coordinate += j;
    for (float*& column : row.columns) column += j;
    return row;
  }
};

struct AssignmentRowSums {  // over the row: weights, and weights times the target point
  float lanes[4][kLanes] = {};
  double total(int k) const {
    double sum = 0;
    for (const float lane : lanes[k]) sum += lane;
    return sum;
  }
};

// Adds a row to its columns, if `both_ways`, and to its sums; only the weights themselves without `moments`. Weights
// below exp(-80) become 0. The same bits from every instruction set.
using AssignmentRowKernel = void (*)(const AssignmentRow& row, AssignmentRowSums& sums);
AssignmentRowKernel choose_assignment_row(bool both_ways, bool moments);

}  // namespace dlc

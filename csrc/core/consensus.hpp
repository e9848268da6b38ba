// Poses from putative matches: pairs of matches that keep their distance are compatible; cliques of them give poses.
// After SC2-PCR (Chen et al., CVPR 2022: second-order compatibility) and maximal cliques (Zhang et al., CVPR 2023).
#pragma once
#include <cstdint>

namespace dlc {

struct ConsensusOptions {
  double tolerance;      // two matches are compatible when their distances differ by less [unit of the points]
  int max_seeds;         // cliques to grow
  int max_clique;        // matches in a clique at most
};

// p, q: (n, 3) matched source and target points. poses: (max_seeds, 16) row-major T_target_source, best seed first;
// support: (max_seeds) matches within the tolerance of each pose. Returns how many were written.
int64_t propose_poses(const float* p, const float* q, int64_t n, const ConsensusOptions& options, double* poses,
                      int64_t* support, int num_threads);

}  // namespace dlc

#include "core/consensus.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>
#include <vector>

#include "core/linalg.hpp"
#include "core/parallel.hpp"

namespace dlc {
namespace {

using Word = uint64_t;

constexpr int64_t kRound = 32;           // seeds grown before what they explain is taken out
constexpr int64_t kWellSupported = 60;  // matches that a pose must explain for its seeds to be taken out

inline int count_bits(Word w) {
#if defined(__GNUC__) || defined(__clang__)
  return __builtin_popcountll(w);
#else
  int c = 0;
  for (; w; w &= w - 1) ++c;
  return c;
#endif
}

inline double distance2(const float* a, const float* b) {
  const double x = double(a[0]) - b[0], y = double(a[1]) - b[1], z = double(a[2]) - b[2];
  return x * x + y * y + z * z;
}

struct BitMatrix {
  int64_t n, words;
  std::vector<Word> bits;
  explicit BitMatrix(int64_t size) : n(size), words((size + 63) / 64), bits(size * words, 0) {}
  Word* row(int64_t i) { return bits.data() + i * words; }
  const Word* row(int64_t i) const { return bits.data() + i * words; }
};

template <typename Function>
void for_each_bit(const Word* row, int64_t words, Function&& function) {
  for (int64_t w = 0; w < words; ++w)
    for (Word word = row[w]; word; word &= word - 1) {
      const Word lowest = word & (~word + 1);
      function(w * 64 + count_bits(lowest - 1));
    }
}

int common_plain(const Word* a, const Word* b, int64_t words) {
  int c = 0;
  for (int64_t w = 0; w < words; ++w) c += count_bits(a[w] & b[w]);
  return c;
}

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
// The plain x86-64 target has no popcnt instruction, which is most of the work here.
__attribute__((target("popcnt"))) int common_popcnt(const Word* a, const Word* b, int64_t words) {
  int c = 0;
  for (int64_t w = 0; w < words; ++w) c += __builtin_popcountll(a[w] & b[w]);
  return c;
}
const auto common = __builtin_cpu_supports("popcnt") ? common_popcnt : common_plain;
#else
constexpr auto common = common_plain;
#endif

BitMatrix compatibility(const float* p, const float* q, int64_t n, double tolerance, int num_threads) {
  BitMatrix graph(n);
  parallel_for(n, 16, num_threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      for (int64_t j = 0; j < n; ++j) {
        const double dp = std::sqrt(distance2(p + 3 * i, p + 3 * j)), dq = std::sqrt(distance2(q + 3 * i, q + 3 * j));
        // Matches closer together than the tolerance agree whatever the pose.
        if (std::min(dp, dq) > tolerance && std::fabs(dp - dq) < tolerance) graph.row(i)[j / 64] |= Word(1) << (j % 64);
      }
  });
  return graph;
}

std::vector<int64_t> triangles(const BitMatrix& graph, int num_threads) {
  std::vector<int64_t> count(graph.n, 0);
  parallel_for(graph.n, 16, num_threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      for_each_bit(graph.row(i), graph.words,
                   [&](int64_t j) { count[i] += common(graph.row(i), graph.row(j), graph.words); });
  });
  return count;
}

std::vector<int64_t> choose_seeds(const float* p, const std::vector<int64_t>& score, double spacing, int max_seeds) {
  std::vector<int64_t> order(score.size()), seeds;
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return score[a] > score[b]; });
  for (int64_t i : order) {
    if (static_cast<int>(seeds.size()) >= max_seeds || score[i] == 0) break;
    const bool crowded = std::any_of(seeds.begin(), seeds.end(), [&](int64_t s) {
      return distance2(p + 3 * i, p + 3 * s) < spacing * spacing;
    });
    if (!crowded) seeds.push_back(i);
  }
  return seeds;
}

std::vector<int64_t> grow_clique(const BitMatrix& graph, int64_t seed, int max_clique) {
  std::vector<int64_t> clique{seed};
  std::vector<Word> candidates(graph.row(seed), graph.row(seed) + graph.words);
  while (static_cast<int>(clique.size()) < max_clique) {
    int64_t best = -1;
    int most = -1;
    for_each_bit(candidates.data(), graph.words, [&](int64_t j) {
      const int c = common(candidates.data(), graph.row(j), graph.words);
      if (c > most) most = c, best = j;
    });
    if (best < 0) break;
    clique.push_back(best);
    for (int64_t w = 0; w < graph.words; ++w) candidates[w] &= graph.row(best)[w];
  }
  return clique;
}

bool fit(const float* p, const float* q, const std::vector<int64_t>& matches, double pose[16]) {
  if (matches.size() < 3) return false;
  double sum_p[3] = {}, sum_q[3] = {}, sum_qp[9] = {};
  for (int64_t i : matches)
    for (int r = 0; r < 3; ++r) {
      sum_p[r] += p[3 * i + r];
      sum_q[r] += q[3 * i + r];
      for (int c = 0; c < 3; ++c) sum_qp[3 * r + c] += double(q[3 * i + r]) * p[3 * i + c];
    }
  double rotation[9], translation[3];
  procrustes(static_cast<double>(matches.size()), sum_p, sum_q, sum_qp, rotation, translation);
  for (int r = 0; r < 3; ++r) {
    for (int c = 0; c < 3; ++c) pose[4 * r + c] = rotation[3 * r + c];
    pose[4 * r + 3] = translation[r];
  }
  pose[12] = pose[13] = pose[14] = 0.0;
  pose[15] = 1.0;
  return true;
}

std::vector<int64_t> supporters(const float* p, const float* q, int64_t n, const double pose[16], double tolerance) {
  std::vector<int64_t> inside;
  for (int64_t i = 0; i < n; ++i) {
    double d2 = 0.0;
    for (int r = 0; r < 3; ++r) {
      const double x = pose[4 * r] * p[3 * i] + pose[4 * r + 1] * p[3 * i + 1] + pose[4 * r + 2] * p[3 * i + 2] +
                       pose[4 * r + 3] - q[3 * i + r];
      d2 += x * x;
    }
    if (d2 < tolerance * tolerance) inside.push_back(i);
  }
  return inside;
}

}  // namespace

int64_t propose_poses(const float* p, const float* q, int64_t n, const ConsensusOptions& options, double* poses,
                      int64_t* support, int num_threads) {
  const BitMatrix graph = compatibility(p, q, n, options.tolerance, num_threads);
  const auto seeds = choose_seeds(p, triangles(graph, num_threads), options.tolerance, options.max_seeds);
  const int64_t m = static_cast<int64_t>(seeds.size());
  std::vector<char> good(m, 0), covered(n, 0);
  std::vector<std::vector<int64_t>> inside(m);
  // In rounds: a seed that a well supported pose already explains would only find that pose again.
  for (int64_t round = 0; round < m; round += kRound) {
    const int64_t size = std::min(kRound, m - round);
    parallel_for(size, 4, num_threads, [&](int64_t begin, int64_t end) {
      for (int64_t s = round + begin; s < round + end; ++s) {
        double *pose = poses + 16 * s, refit[16];
        if (covered[seeds[s]] || !fit(p, q, grow_clique(graph, seeds[s], options.max_clique), pose)) continue;
        inside[s] = supporters(p, q, n, pose, options.tolerance);
        good[s] = 1;
        if (!fit(p, q, inside[s], refit)) continue;
        auto again = supporters(p, q, n, refit, options.tolerance);
        if (again.size() < inside[s].size()) continue;
        std::copy(refit, refit + 16, pose);
        inside[s] = std::move(again);
      }
    });
    for (int64_t s = round; s < round + size; ++s) {
      support[s] = static_cast<int64_t>(inside[s].size());
      if (support[s] < kWellSupported) continue;
      for (int64_t i : inside[s]) covered[i] = 1;
    }
  }
  int64_t kept = 0;
  for (int64_t s = 0; s < m; ++s)
    if (good[s]) {  // compact in place
      if (kept != s) std::copy(poses + 16 * s, poses + 16 * s + 16, poses + 16 * kept);
      support[kept++] = support[s];
    }
  return kept;
}

}  // namespace dlc

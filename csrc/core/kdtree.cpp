#include "core/kdtree.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/search.hpp"
#include "core/search_patch.hpp"

namespace dlc {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The largest float below a strict limit: d2 < limit where d2 <= below(limit). Negative: nothing qualifies.
float below(float limit) {
  if (!(limit > 0)) return -1;
  const int32_t bits = search::bits_of(limit) - 1;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

}  // namespace

void KdTree::nearest_of_each(const float* queries, int64_t m, float max_d2, int32_t* index, float* d2) const {
  const float limit = below(max_d2);
  search::in_patches(nodes_.data(), levels_, queries, m, limit, [&](int64_t i, const Node* nodes, int levels) {
    search::Nearest found{limit};
    search::traverse(nodes, leaves_.get(), levels, queries + 3 * i, found);
    index[i] = found.any() ? found.index : -1;
    d2[i] = found.any() ? found.bound : kInfinity;
    return found.bound;
  });
}

void KdTree::nearest_two_of_each(const float* queries, int64_t m, float max_d2, int32_t* index, float* d2,
                                 float* second_d2) const {
  const float limit = below(max_d2);
  search::in_patches(nodes_.data(), levels_, queries, m, limit, [&](int64_t i, const Node* nodes, int levels) {
    search::NearestTwo found{limit};
    search::traverse(nodes, leaves_.get(), levels, queries + 3 * i, found);
    index[i] = found.first.any() ? found.first.index : -1;
    d2[i] = found.first.any() ? found.first.bound : kInfinity;
    second_d2[i] = found.bound;
    return found.bound;
  });
}

// `bound` is inclusive, unlike max_d2; wanted: the largest d2 that could still have entered the answer.
int KdTree::knn_in(const Node* nodes, int levels, const float q[3], int k, float bound, int32_t* index, float* d2,
                   float& wanted) const {
  const auto write = [&](const uint64_t* keys, int count) {
    for (int i = 0; i < count; ++i) {
      d2[i] = search::key_distance(keys[i]);
      index[i] = search::key_index(keys[i]);
    }
    return count;
  };
  if (k <= search::KSorted::kMax) {
    search::KSorted found(bound, k);
    search::traverse(nodes, leaves_.get(), levels, q, found);
    wanted = found.bound;
    return write(found.keys, found.count);
  }
  search::KHeap found(bound, k);
  search::traverse(nodes, leaves_.get(), levels, q, found);
  wanted = found.bound;
  std::sort_heap(found.keys.begin(), found.keys.end());
  return write(found.keys.data(), static_cast<int>(found.keys.size()));
}

int KdTree::knn(const float q[3], int k, float max_d2, int32_t* index, float* d2) const {
  int count = 0;
  knn_of_each(q, 1, k, max_d2, index, d2, &count);
  return count;
}

void KdTree::knn_of_each(const float* queries, int64_t m, int k, float max_d2, int32_t* index, float* d2,
                         int* count) const {
  const int room = static_cast<int>(std::min<int64_t>(k, n_));
  const float limit = below(max_d2);
  if (room <= 0) {
    std::fill(count, count + m, 0);
    return;
  }
  search::in_patches(nodes_.data(), levels_, queries, m, limit, [&](int64_t i, const Node* nodes, int levels) {
    float wanted = limit;
    count[i] = knn_in(nodes, levels, queries + 3 * i, room, limit, index + i * k, d2 + i * k, wanted);
    return wanted;
  });
}

int64_t KdTree::radius(const float q[3], float r2, std::vector<std::pair<float, int32_t>>& out) const {
  out.clear();
  search::Ball found{below(r2), out};
  search::traverse(nodes_.data(), leaves_.get(), levels_, q, found);
  std::sort(out.begin(), out.end());
  return static_cast<int64_t>(out.size());
}

int64_t KdTree::count(const float q[3], float r2) const {
  search::Counter found{below(r2)};
  search::traverse(nodes_.data(), leaves_.get(), levels_, q, found);
  return found.count;
}

float squared_limit(float max_distance) {
  if (!(max_distance > 0)) return 0;
  float limit = max_distance * max_distance;
  while (limit > 0 && std::sqrt(std::nextafter(limit, 0.0f)) >= max_distance) limit = std::nextafter(limit, 0.0f);
  while (std::sqrt(limit) < max_distance) limit = std::nextafter(limit, kInfinity);
  return limit;
}

}  // namespace dlc

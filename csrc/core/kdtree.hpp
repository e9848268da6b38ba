// Exact nearest neighbours in float32. d2 is (qx-px)^2 + (qy-py)^2 + (qz-pz)^2 in this order, each operation rounded to
// float32; lower bounds are computed in the same order from nearer coordinates, and rounding is monotone, so no pruned
// point could have won. Hence the answer is unique: the smallest (d2, index), whatever the tree or the instruction set.
#pragma once
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

namespace dlc {

class KdTree {
 public:
  static constexpr int kLeaf = 16;  // points in a leaf
  static constexpr int kWidth = 8;  // children of a node

  // points: (n, 3), finite, copied; n < 2^31. The tree does not depend on num_threads.
  KdTree(const float* points, int64_t n, int num_threads);

  int64_t size() const { return n_; }
  const float* point(int32_t index) const { return points_.get() + 3 * static_cast<std::size_t>(index); }  // original order

  // The k nearest with d2 < max_d2, sorted by (d2, index). Returns how many were written (at most k).
  int knn(const float q[3], int k, float max_d2, int32_t* index, float* d2) const;

  // For m queries (m, 3), quickest where each is near the one before. index, d2: (m) or (m, k).
  // nearest_of_each: the nearest point with d2 < max_d2 (strictly), the lowest index of a tie; (-1, infinity) where there
  // is none. nearest_two_of_each: the same, and no other point has a smaller d2 than second_d2, which is at most max_d2.
  // knn_of_each: knn, query i writes the first count[i] of its row.
  void nearest_of_each(const float* queries, int64_t m, float max_d2, int32_t* index, float* d2) const;
  void nearest_two_of_each(const float* queries, int64_t m, float max_d2, int32_t* index, float* d2, float* second_d2) const;
  void knn_of_each(const float* queries, int64_t m, int k, float max_d2, int32_t* index, float* d2, int* count) const;

  // All points with d2 < r2, sorted by (d2, index); replaces the content of out. Returns how many.
  int64_t radius(const float q[3], float r2, std::vector<std::pair<float, int32_t>>& out) const;

  // How many points have d2 < r2.
  int64_t count(const float q[3], float r2) const;

  struct alignas(64) Node {  // boxes of up to 8 children, side by side; a missing child has lo = +inf, hi = -inf
    float lo[3][kWidth];
    float hi[3][kWidth];
    int32_t first;  // first child: a node, or a leaf in the last level; the others follow it
  };
  struct alignas(64) Leaf {  // padded with +inf coordinates
    float x[3][kLeaf];
    int32_t index[kLeaf];  // in no order
  };

 private:
  struct Build;
  int knn_in(const Node* nodes, int levels, const float q[3], int k, float bound, int32_t* index, float* d2,
             float& wanted) const;
  int64_t n_ = 0;
  int levels_ = 0;  // levels of nodes; the children of the last are leaves; 0 if empty
  // Not vectors: a large one would first be set to zero, by one thread.
  std::unique_ptr<float[]> points_;
  std::unique_ptr<Leaf[]> leaves_;
  std::vector<Node> nodes_;
};

// The d2 bound for Euclidean distances: d2 < squared_limit(r) exactly where sqrtf(d2) < r.
float squared_limit(float max_distance);

// Batches. Distances are Euclidean and strictly less than the limit; missing neighbours are (inf, -1).
// queries: (m, 3); distances, indices: (m, k).
void knn(const KdTree& tree, const float* queries, int64_t m, int k, float max_distance, float* distances,
         int64_t* indices, int num_threads);

// Batches of clouds (batch, rows, 3), padded: where the mask (batch, rows), or null, is 0 there is no point, whatever the
// memory holds. Each query looks among the points of its own cloud; a row of padding finds nothing.
// distances, indices: (batch, queries.rows, k); indices are rows of the padded cloud.
struct PaddedClouds {
  const float* points;
  const uint8_t* mask;
  int64_t rows;
};
void knn_batch(const PaddedClouds& queries, const PaddedClouds& points, int64_t batch, int k, float max_distance,
               float* distances, int64_t* indices, int num_threads);

// splits: (m + 1), query i owns [splits[i], splits[i + 1]). Returns splits[m].
int64_t radius_count(const KdTree& tree, const float* queries, int64_t m, float radius, int64_t* splits,
                     int num_threads);

// splits from radius_count; distances, indices: (splits[m]), each query's sorted by (distance, index).
void radius_fill(const KdTree& tree, const float* queries, int64_t m, float radius, const int64_t* splits,
                 float* distances, int64_t* indices, int num_threads);

}  // namespace dlc

// A thinned cloud prepared for judging many poses: a dense grid of nearest points, and what its sensor saw.
#pragma once
#include <array>
#include <cstdint>
#include <vector>

namespace dlc {

// For every cell within `reach` of a point, the point nearest to the cell's centre: an approximate nearest neighbour
// in one look-up. Cells grow where the cloud is so spread out that the grid would not fit in memory. Throws
// std::invalid_argument where cell or reach is no positive number or the cloud is larger than float32 can span.
class NearestGrid {
 public:
  NearestGrid(const float* points, int64_t n, float cell, float reach);
  int32_t nearest(const float q[3]) const {
    int64_t at = 0;
    for (int a = 0; a < 3; ++a) {
      const float x = (q[a] - low_[a]) * inverse_cell_;
      if (!(x >= 0.0f && x < static_cast<float>(size_[a]))) return -1;
      at = at * size_[a] + static_cast<int64_t>(x);
    }
    return cells_[at];
  }

 private:
  std::array<float, 3> low_;
  std::array<int64_t, 3> size_;
  float inverse_cell_;
  std::vector<int32_t> cells_;
};

// Depth of the nearest surface in every direction from the eye, on a cube of equal-angle bins; each bin holds the
// least depth of its 3 x 3 neighbours, so that a gap between samples is not taken for an opening. A bin is never narrower
// than 1/2048 of a right angle.
class DepthMap {
 public:
  DepthMap(const float* points, int64_t n, const std::array<float, 3>& eye, float bin_angle);
  // Depth of what was seen in q's direction minus q's own depth (how far q floats before it); false where unseen.
  bool clearance(const float q[3], float& depth) const;

 private:
  bool locate(const float q[3], int& face, int& u, int& v, float& depth) const;
  std::array<float, 3> eye_;
  float inverse_bin_;
  int size_;
  std::vector<float> depth_;
};

struct Surface {
  Surface(const float* points, const float* normals, int64_t n, float cell, float reach);
  void set_eye(const std::array<float, 3>& eye, float bin_angle) {
    depth_maps.assign(1, DepthMap(points.data(), size(), eye, bin_angle));
  }
  int64_t size() const { return static_cast<int64_t>(points.size() / 3); }
  std::vector<float> points, normals;
  NearestGrid grid;
  std::vector<DepthMap> depth_maps;  // none or one
};

struct JudgeOptions {
  float distance;       // an overlapping point has the other cloud within this
  float normal_cosine;  // and a normal at an angle of a larger cosine (without signs: of a larger |cosine|)
  bool oriented;        // normals have signs
  float free_margin;    // a point that floats further than this before a seen surface contradicts free space
  int64_t samples;      // points looked at in each cloud
};

// out: (n_poses, 4): overlap of source, overlap of target, share of free-space violations (-1: no viewpoint), and the
// mean over overlapping points of 1 - (d / distance)^2.
void judge_poses(const Surface& source, const Surface& target, const double* poses, int64_t n_poses,
                 const JudgeOptions& options, double* out, int num_threads);

struct RefineOptions {
  int iterations;
  float first_distance, last_distance;  // correspondence distance, shrinking geometrically
  float normal_cosine;
  bool oriented;
  int64_t samples;
};

// Point-to-plane ICP of every pose on the grid's neighbours, in place. Poses that lose their footing stay as they were.
void refine_poses(const Surface& source, const Surface& target, double* poses, int64_t n_poses,
                  const RefineOptions& options, int num_threads);

}  // namespace dlc

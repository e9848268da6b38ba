// Poses judged on walls whose answer is known, refinement of a bumpy sheet, and clouds that hold next to nothing.
#include "core/surface.hpp"

#include <algorithm>
#include <stdexcept>

#include "check.hpp"
#include "core/linalg.hpp"

using dlc::Surface;

namespace {

using Floats = std::vector<float>;
using Poses = std::vector<double>;

constexpr dlc::JudgeOptions kJudge{0.1f, 0.8f, true, 0.1f, 1000};
constexpr dlc::RefineOptions kRefine{10, 0.25f, 0.1f, 0.5f, false, 1000};

Poses shifted(double x, double y, double z) { return {1, 0, 0, x, 0, 1, 0, y, 0, 0, 1, z, 0, 0, 0, 1}; }

Floats repeated(const Floats& normal, int64_t n) {
  Floats out;
  for (int64_t i = 0; i < n; ++i) out.insert(out.end(), normal.begin(), normal.end());
  return out;
}

// A square of n x n points at z = depth that faces the origin.
Surface wall(float depth, float half, int n) {
  Floats points;
  for (int x = 0; x < n; ++x)
    for (int y = 0; y < n; ++y) {
      const float step = 2 * half / static_cast<float>(n - 1);
      points.insert(points.end(), {static_cast<float>(x) * step - half, static_cast<float>(y) * step - half, depth});
    }
  return Surface(points.data(), repeated({0, 0, -1}, n * n).data(), n * n, 0.05f, 0.15f);
}

Surface sheet(unsigned seed, int64_t n) {
  const Floats points = shapes::points("surface", n, seed);
  Floats normals;
  for (std::size_t i = 0; i < points.size(); i += 3) {
    const float x = points[i], y = points[i + 1];
    const float dx = 2.1f * std::cos(7 * x) * std::cos(5 * y), dy = -1.5f * std::sin(7 * x) * std::sin(5 * y);
    const float norm = std::sqrt(dx * dx + dy * dy + 1);
    normals.insert(normals.end(), {-dx / norm, -dy / norm, 1 / norm});
  }
  return Surface(points.data(), normals.data(), n, 0.02f, 0.3f);
}

std::vector<double> judge(const Surface& source, const Surface& target, const Poses& poses, int threads = 1) {
  std::vector<double> out(poses.size() / 4, -7);
  judge_poses(source, target, poses.data(), static_cast<int64_t>(poses.size() / 16), kJudge, out.data(), threads);
  return out;
}

Poses refine(const Surface& source, const Surface& target, Poses poses, int threads = 1) {
  refine_poses(source, target, poses.data(), static_cast<int64_t>(poses.size() / 16), kRefine, threads);
  return poses;
}

void check_walls() {
  Surface seen = wall(2, 1, 61);
  const Surface patch = wall(2, 0.4f, 25);
  CHECK(judge(patch, seen, shifted(0, 0, -1))[2] == -1);
  seen.set_eye({0, 0, 0}, 0.05f);
  CHECK(judge(patch, seen, shifted(0, 0, -1)) == (std::vector<double>{0, 0, 1, 0}));
  CHECK(judge(patch, seen, shifted(0, 0, 1)) == (std::vector<double>{0, 0, 0, 0}));
  CHECK(judge(patch, seen, shifted(50, 0, 0)) == (std::vector<double>{0, 0, -1, 0}));
  CHECK(judge(patch, seen, shifted(0, 0, -0.08))[2] == 0);  // within the margin
  CHECK(judge(patch, seen, shifted(0, 0, 1e300))[2] == -1);
  const auto here = judge(patch, seen, shifted(0, 0, 0));
  CHECK(here[0] == 1 && here[1] > 0.1 && here[1] < 0.3 && here[2] == 0 && here[3] > 0.8);
  const auto back = judge(seen, patch, shifted(0, 0, 1));  // the eye is now the source's
  CHECK(back[2] == 1);
  Surface behind = wall(2, 1, 61);
  behind.set_eye({0, 0, 4}, 1e-9f);  // an eye on the other side, bins as narrow as they get
  CHECK(judge(patch, behind, shifted(0, 0, 1))[2] >= 0);
}

void check_sheet() {
  const Surface source = sheet(1, 3000), target = sheet(2, 3000);
  Poses poses;
  for (int k = 0; k < 5; ++k) {
    const double a = 0.02 * k, xi[6] = {a, -a, a, 0.01 * k, 0, -0.01 * k};
    poses.resize(poses.size() + 16);
    dlc::se3_exp(xi, &poses[poses.size() - 16]);
  }
  const Poses away = shifted(50, 0, 0);
  poses.insert(poses.end(), away.begin(), away.end());
  const Poses refined = refine(source, target, poses);
  for (const int threads : {2, 3}) {
    CHECK(refine(source, target, poses, threads) == refined);
    CHECK(judge(source, target, poses, threads) == judge(source, target, poses));
  }
  for (std::size_t k = 0; k < 5; ++k)
    for (std::size_t i = 0; i < 16; ++i) CHECK(std::fabs(refined[16 * k + i] - (i % 5 == 0)) < 0.01);
  CHECK(std::equal(away.begin(), away.end(), refined.end() - 16));
}

bool refuses(float cell, float reach, float extent) {
  const Floats points{0, 0, 0, extent, 0, 0};
  try {
    Surface(points.data(), points.data(), 2, cell, reach);
  } catch (const std::invalid_argument&) {
    return true;
  }
  return false;
}

}  // namespace

int main() {
  check_walls();
  check_sheet();
  for (const std::string& shape : shapes::names())
    for (const int64_t n : {0, 1, 2, 5, 200}) {
      const Floats points = shapes::points(shape, n, 5);
      Surface cloud(points.data(), repeated({0, 0, 1}, n).data(), n, 0.05f, 0.1f);
      cloud.set_eye({0.7f, 0.7f, 0.7f}, 0.1f);  // where "equal" has its points
      const auto judged = judge(cloud, cloud, shifted(0, 0, 0));
      for (const double x : judged) CHECK(std::isfinite(x));
      if (n == 0) CHECK(judged == (std::vector<double>{0, 0, -1, 0}));
      if (n == 1) CHECK(judged[0] == 1 && judged[1] == 1);
      for (const double x : refine(cloud, cloud, shifted(0.01, 0, 0))) CHECK(std::isfinite(x));
      if (n < 6) CHECK(refine(cloud, cloud, shifted(0.01, 0, 0)) == shifted(0.01, 0, 0));
    }
  const Floats far{1e30f, 1e30f, 1e30f};  // where the reach is lost to rounding, and is more cells than an int counts
  CHECK(dlc::NearestGrid(far.data(), 1, 1e-10f, 1.0f).nearest(far.data()) == 0);
  CHECK(!refuses(1e-40f, 1e-3f, 1));  // more cells than fit: they grow
  CHECK(!refuses(1, 1, 1e30f));
  CHECK(refuses(0, 1, 1));
  CHECK(refuses(-1, 1, 1));
  CHECK(refuses(std::nanf(""), 1, 1));
  CHECK(refuses(1, 0, 1));
  CHECK(refuses(1, shapes::kInfinity, 1));
  CHECK(refuses(1, 3e38f, 3e38f));
  return failures() ? 1 : 0;
}

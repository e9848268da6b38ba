// Voxel means against a map of cells.
#include "core/voxel.hpp"

#include <array>
#include <map>
#include <stdexcept>

#include "check.hpp"
#include "core/morton.hpp"

namespace {

struct Voxels {
  std::vector<int64_t> inverse;
  std::vector<float> means;

  bool operator==(const Voxels& other) const { return inverse == other.inverse && means == other.means; }
};

Voxels downsample(const std::vector<float>& points, double size, int threads) {
  const int64_t n = static_cast<int64_t>(points.size() / 3);
  Voxels out{std::vector<int64_t>(points.size() / 3, -1), std::vector<float>(points.size())};
  const int64_t m = dlc::voxel_downsample(points.data(), n, size, out.inverse.data(), out.means.data(), threads);
  out.means.resize(static_cast<std::size_t>(3 * m));
  return out;
}

void check_shape(const std::string& shape, int64_t n, double size) {
  const std::vector<float> points = shapes::points(shape, n, 2);
  const Voxels voxels = downsample(points, size, 1);
  for (const int threads : {2, 3}) CHECK(downsample(points, size, threads) == voxels);

  std::array<double, 3> least{1e300, 1e300, 1e300};
  for (std::size_t i = 0; i < points.size(); ++i) least[i % 3] = std::min<double>(least[i % 3], points[i]);
  std::map<uint64_t, std::vector<std::size_t>> cells;  // by Morton code
  for (std::size_t i = 0; i < points.size() / 3; ++i) {
    uint64_t cell[3];
    for (std::size_t a = 0; a < 3; ++a)
      cell[a] = static_cast<uint64_t>(std::floor((points[3 * i + a] - (least[a] - size * 0.5)) / size));
    cells[dlc::morton_code(cell[0], cell[1], cell[2])].push_back(i);
  }
  CHECK(voxels.means.size() == 3 * cells.size());
  std::size_t v = 0;
  for (const auto& [code, members] : cells) {
    double sum[3] = {0, 0, 0};
    for (const std::size_t i : members) {
      CHECK(voxels.inverse[i] == static_cast<int64_t>(v));
      for (std::size_t a = 0; a < 3; ++a) sum[a] += points[3 * i + a];
    }
    for (std::size_t a = 0; a < 3; ++a)
      CHECK(voxels.means[3 * v + a] == static_cast<float>(sum[a] / static_cast<double>(members.size())));
    ++v;
  }
}

bool refuses(double size, float extent) {
  const std::vector<float> points{0, 0, 0, extent, 0, 0};
  try {
    downsample(points, size, 1);
  } catch (const std::invalid_argument&) {
    return true;
  }
  return false;
}

}  // namespace

int main() {
  for (const std::string& shape : shapes::names())
    for (const int64_t n : {0, 1, 2, 1000, 20000})
      for (const double size : {0.05, 0.3, 1.0, 1e6}) check_shape(shape, n, size);
  check_shape("line", 3000, 1e-6);
  CHECK(refuses(0, 1));
  CHECK(refuses(-1, 1));
  CHECK(refuses(std::nan(""), 1));
  CHECK(refuses(std::numeric_limits<double>::infinity(), 1));
  CHECK(refuses(1, 2097152));
  CHECK(!refuses(1, 2097151));
  return failures() ? 1 : 0;
}

// Searches with a memory against searches without, along motions that become ever smaller, jump, and come back.
#include "core/search_memory.hpp"

#include "check.hpp"
#include "core/kdtree.hpp"

namespace {

constexpr int64_t kRun = dlc::SearchMemory::kRun;

struct Case {
  std::vector<float> target, source;
  float size;  // of the shape's features
};

void check_motion(const Case& given, float max_d2) {
  const auto n = static_cast<int64_t>(given.source.size() / 3);
  const dlc::KdTree tree(given.target.data(), static_cast<int64_t>(given.target.size() / 3), 1);
  std::vector<float> buffer(dlc::SearchMemory::bytes(n) / sizeof(float));
  const dlc::SearchMemory memory(buffer.data(), n);
  std::vector<float> queries = given.source;
  int64_t kept = 0;
  for (int step = 0; step < 24; ++step) {
    const float move = step == 15 ? given.size : given.size * std::pow(0.5f, static_cast<float>(step % 16));
    for (std::size_t i = 0; i < queries.size(); ++i) queries[i] += (i % 2 ? -move : move) * (i % 5 ? 0.3f : 0.1f);
    if (step == 20) queries[3 * (queries.size() / 6)] = std::nanf("");
    if (step == 22) queries = given.source;
    std::vector<int32_t> index(static_cast<std::size_t>(n)), expected(index.size());
    std::vector<float> d2(index.size()), expected_d2(index.size());
    const std::vector<float> before = buffer;
    for (int64_t first = 0; first < n; first += kRun) {
      const int64_t m = std::min(kRun, n - first);
      memory.nearest_of_run(tree, first, queries.data() + 3 * first, m, max_d2, index.data() + first, d2.data() + first);
      tree.nearest_of_each(queries.data() + 3 * first, m, max_d2, expected.data() + first, expected_d2.data() + first);
    }
    CHECK(index == expected && d2 == expected_d2);
    const auto* old = reinterpret_cast<const dlc::SearchMemory::Point*>(before.data() + (buffer.size() - 5 * index.size()));
    for (int64_t i = 0; i < n; ++i) kept += memory.points[i].second > 0 && memory.points[i].query[0] == old[i].query[0];
  }
  if (max_d2 == shapes::kInfinity && n > 100 && given.size == 0.1f) CHECK(2 * kept > n);  // or nothing was tested
}

}  // namespace

int main() {
  for (const std::string& shape : shapes::names())
    for (const int64_t n : {1, 2, 100, 1000}) {
      const bool tiny = shape == "tiny";
      const bool spread = shape == "uniform" || shape == "surface" || shape == "plane" || shape == "line";
      const Case given{shapes::points(shape, n, 7), shapes::points(shape, n + 30, 8), tiny ? 1e-23f : spread ? 0.1f : 0.5f};
      for (const float max_d2 : {shapes::kInfinity, tiny ? 1e-44f : 1e-3f, 0.0f}) check_motion(given, max_d2);
    }
  return failures() != 0;
}

#include "bindings.hpp"

#include <new>

#include "core/intensities.hpp"
#include "core/kdtree.hpp"
#include "core/morton.hpp"
#include "core/normals.hpp"
#include "core/simd.hpp"
#include "core/voxel.hpp"

namespace nb = nanobind;
using nb::literals::operator""_a;

void bind_search(nb::module_& module) {
  using Address = std::uintptr_t;
  using Unlocked = nb::call_guard<nb::gil_scoped_release>;

  nb::class_<dlc::KdTree>(module, "KdTree")
      .def(
          "__init__",
          [](dlc::KdTree* self, Address points, int64_t n, int num_threads) {
            new (self) dlc::KdTree(pointer<const float>(points), n, num_threads);
          },
          "points"_a, "n"_a, "num_threads"_a, Unlocked())
      .def_prop_ro("size", &dlc::KdTree::size)
      .def(
          "knn",
          [](const dlc::KdTree& tree, Address queries, int64_t m, int k, float max_distance, Address distances,
             Address indices, int num_threads) {
            dlc::knn(tree, pointer<const float>(queries), m, k, max_distance, pointer<float>(distances),
                     pointer<int64_t>(indices), num_threads);
          },
          "queries"_a, "m"_a, "k"_a, "max_distance"_a, "distances"_a, "indices"_a, "num_threads"_a, Unlocked())
      .def(
          "radius_count",
          [](const dlc::KdTree& tree, Address queries, int64_t m, float radius, Address splits, int num_threads) {
            return dlc::radius_count(tree, pointer<const float>(queries), m, radius, pointer<int64_t>(splits),
                                     num_threads);
          },
          "queries"_a, "m"_a, "radius"_a, "splits"_a, "num_threads"_a, Unlocked())
      .def(
          "radius_fill",
          [](const dlc::KdTree& tree, Address queries, int64_t m, float radius, Address splits, Address distances,
             Address indices, int num_threads) {
            dlc::radius_fill(tree, pointer<const float>(queries), m, radius, pointer<const int64_t>(splits),
                             pointer<float>(distances), pointer<int64_t>(indices), num_threads);
          },
          "queries"_a, "m"_a, "radius"_a, "splits"_a, "distances"_a, "indices"_a, "num_threads"_a, Unlocked());

  module.def(
      "voxel_downsample",
      [](Address points, int64_t n, double voxel_size, Address inverse, Address means, int num_threads) {
        return dlc::voxel_downsample(pointer<const float>(points), n, voxel_size, pointer<int64_t>(inverse),
                                     pointer<float>(means), num_threads);
      },
      "points"_a, "n"_a, "voxel_size"_a, "inverse"_a, "means"_a, "num_threads"_a, Unlocked());
  module.def(
      "normals",
      [](const dlc::KdTree& tree, Address points, int64_t n, int k, float max_distance, Address normals,
         Address covariances, int num_threads) {
        dlc::normals(tree, pointer<const float>(points), n, k, max_distance, pointer<float>(normals),
                     pointer<float>(covariances), num_threads);
      },
      "tree"_a, "points"_a, "n"_a, "k"_a, "max_distance"_a, "normals"_a, "covariances"_a, "num_threads"_a, Unlocked());
  module.def(
      "intensity_gradients",
      [](const dlc::KdTree& tree, Address intensities, Address normals, int k, float max_distance,
         Address intensities_and_gradients, int num_threads) {
        dlc::intensity_gradients(tree, pointer<const float>(intensities), pointer<const float>(normals), k,
                                 max_distance, pointer<float>(intensities_and_gradients), num_threads);
      },
      "tree"_a, "intensities"_a, "normals"_a, "k"_a, "max_distance"_a, "intensities_and_gradients"_a, "num_threads"_a,
      Unlocked());
  module.def(
      "normals_of_rows",
      [](Address points, int64_t m, Address rows, int64_t batch, int64_t n, int k, Address normals, int num_threads) {
        dlc::normals_of_rows(pointer<const float>(points), m, pointer<const int64_t>(rows), batch, n, k,
                             pointer<float>(normals), num_threads);
      },
      "points"_a, "m"_a, "rows"_a, "batch"_a, "n"_a, "k"_a, "normals"_a, "num_threads"_a, Unlocked());
  module.def(
      "knn_batch",
      [](Address queries, Address query_mask, int64_t n, Address points, Address points_mask, int64_t m, int64_t batch,
         int k, float max_distance, Address distances, Address indices, int num_threads) {
        dlc::knn_batch({pointer<const float>(queries), pointer<const uint8_t>(query_mask), n},
                       {pointer<const float>(points), pointer<const uint8_t>(points_mask), m}, batch, k, max_distance,
                       pointer<float>(distances), pointer<int64_t>(indices), num_threads);
      },
      "queries"_a, "query_mask"_a, "n"_a, "points"_a, "points_mask"_a, "m"_a, "batch"_a, "k"_a, "max_distance"_a,
      "distances"_a, "indices"_a, "num_threads"_a, Unlocked());
  module.def(
      "morton_order",
      [](Address points, int64_t n, Address order, int num_threads) {
        dlc::morton_order(pointer<const float>(points), n, pointer<int64_t>(order), num_threads);
      },
      "points"_a, "n"_a, "order"_a, "num_threads"_a = 0, Unlocked());
  module.def("simd_level", &dlc::simd_level);
}

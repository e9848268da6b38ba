#include "bindings.hpp"

#include <nanobind/stl/array.h>

#include "core/consensus.hpp"
#include "core/features.hpp"
#include "core/kdtree.hpp"
#include "core/signatures.hpp"
#include "core/surface.hpp"

namespace nb = nanobind;
using Address = std::uintptr_t;

void bind_hypotheses(nb::module_& module) {
  nb::class_<dlc::Surface>(module, "Surface")
      .def("__init__",
           [](dlc::Surface* self, Address points, Address normals, int64_t n, float cell, float reach) {
             new (self) dlc::Surface(pointer<float>(points), pointer<float>(normals), n, cell, reach);
           })
      .def("set_eye", &dlc::Surface::set_eye)
      .def_prop_ro("size", &dlc::Surface::size);

  module.def("fpfh", [](const dlc::KdTree& tree, Address points, Address normals, int64_t n, float radius, bool oriented,
                        Address features, int num_threads) {
    nb::gil_scoped_release release;
    dlc::fpfh(tree, pointer<float>(points), pointer<float>(normals), n, radius, oriented, pointer<float>(features),
              num_threads);
  });
  module.def("signature_size", &dlc::signature_size);
  module.def("signatures", [](const dlc::KdTree& tree, Address points, Address normals, int64_t n, float radius,
                              bool oriented, Address signatures, int num_threads) {
    nb::gil_scoped_release release;
    dlc::signatures(tree, pointer<float>(points), pointer<float>(normals), n, radius, oriented,
                    pointer<float>(signatures), num_threads);
  });
  module.def("nearest_features", [](Address a, int64_t n, Address b, int64_t m, int size, Address indices,
                                    Address squared_distances, int num_threads) {
    nb::gil_scoped_release release;
    dlc::nearest_features(pointer<float>(a), n, pointer<float>(b), m, size, pointer<int64_t>(indices),
                          pointer<float>(squared_distances), num_threads);
  });
  module.def("propose_poses", [](Address p, Address q, int64_t n, double tolerance, int max_seeds, int max_clique,
                                 Address poses, Address support, int num_threads) {
    nb::gil_scoped_release release;
    return dlc::propose_poses(pointer<float>(p), pointer<float>(q), n, {tolerance, max_seeds, max_clique},
                              pointer<double>(poses), pointer<int64_t>(support), num_threads);
  });
  module.def("judge_poses", [](const dlc::Surface& source, const dlc::Surface& target, Address poses, int64_t n,
                               float distance, float normal_cosine, bool oriented, float free_margin, int64_t samples,
                               Address out, int num_threads) {
    nb::gil_scoped_release release;
    dlc::judge_poses(source, target, pointer<double>(poses), n,
                     {distance, normal_cosine, oriented, free_margin, samples}, pointer<double>(out),
                     num_threads);
  });
  module.def("refine_poses", [](const dlc::Surface& source, const dlc::Surface& target, Address poses, int64_t n,
                                int iterations, float first_distance, float last_distance, float normal_cosine,
                                bool oriented, int64_t samples, int num_threads) {
    nb::gil_scoped_release release;
    dlc::refine_poses(source, target, pointer<double>(poses), n,
                      {iterations, first_distance, last_distance, normal_cosine, oriented, samples}, num_threads);
  });
}

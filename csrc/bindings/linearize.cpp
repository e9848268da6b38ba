#include "core/linearize.hpp"

#include "bindings.hpp"
#include "core/kdtree.hpp"

namespace nb = nanobind;
using Address = std::uintptr_t;

void bind_linearize(nb::module_& module) {
  module.attr("LINEARIZE_SUMS") = dlc::kSums;
  module.def("linearize", [](int kind, Address source, Address source_normals, Address source_covariances, int64_t n,
                             const dlc::KdTree& tree, Address target, Address target_normals,
                             Address target_covariances, Address transform, float max_distance, int kernel,
                             double kernel_parameter, bool search, Address indices, Address distances, Address sums,
                             int num_threads) {
    nb::gil_scoped_release release;
    const dlc::LinearizeProblem problem{static_cast<dlc::Kind>(kind),
                                        pointer<float>(source),
                                        pointer<float>(source_normals),
                                        pointer<float>(source_covariances),
                                        n,
                                        search ? &tree : nullptr,
                                        pointer<float>(target),
                                        pointer<float>(target_normals),
                                        pointer<float>(target_covariances),
                                        pointer<double>(transform),
                                        max_distance,
                                        static_cast<dlc::Kernel>(kernel),
                                        kernel_parameter,
                                        pointer<int64_t>(indices),
                                        pointer<float>(distances)};
    dlc::linearize(problem, pointer<double>(sums), num_threads);
  });
}

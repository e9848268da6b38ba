#include "core/linearize.hpp"

#include <optional>

#include "bindings.hpp"
#include "core/kdtree.hpp"
#include "core/search_memory.hpp"

namespace nb = nanobind;
using Address = std::uintptr_t;

void bind_linearize(nb::module_& module) {
  module.attr("LINEARIZE_SUMS") = dlc::kSums;
  module.def("search_memory_bytes", &dlc::SearchMemory::bytes);
  module.def("linearize", [](int kind, Address source, Address source_normals, Address source_covariances, int64_t n,
                             const dlc::KdTree& tree, Address target, Address target_normals,
                             Address target_covariances, Address source_intensities, Address target_intensities,
                             double lambda_geometric, Address transform, float max_distance, int kernel,
                             double kernel_parameter, bool search, Address indices, Address distances, Address memory,
                             Address sums, int num_threads) {
    nb::gil_scoped_release release;
    std::optional<dlc::SearchMemory> remembered;
    if (memory) remembered.emplace(pointer<void>(memory), n);
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
                                        pointer<float>(distances),
                                        remembered ? &*remembered : nullptr,
                                        pointer<float>(source_intensities),
                                        pointer<float>(target_intensities),
                                        lambda_geometric};
    dlc::linearize(problem, pointer<double>(sums), num_threads);
  });
}

#include "core/assignment.hpp"

#include "bindings.hpp"

namespace nb = nanobind;
using Address = std::uintptr_t;

void bind_assignment(nb::module_& module) {
  module.def("soft_assignment",
             [](Address source, Address target, Address poses, Address sharpness, Address outlier,
                Address source_weight, Address target_weight, Address affinity, Address target_features,
                Address source_bias, Address target_bias, int64_t channels, int64_t num_poses, int64_t batch, int64_t n,
                int64_t m, bool both_ways, Address energy, Address poses_after, int num_threads) {
               nb::gil_scoped_release release;
               const dlc::AssignmentProblem problem{pointer<float>(source),
                                                    pointer<float>(target),
                                                    {pointer<float>(affinity), channels,
                                                     pointer<float>(target_features), pointer<float>(source_bias),
                                                     pointer<float>(target_bias)},
                                                    pointer<double>(poses),
                                                    pointer<double>(sharpness),
                                                    pointer<double>(outlier),
                                                    pointer<float>(source_weight),
                                                    pointer<float>(target_weight),
                                                    num_poses,
                                                    batch,
                                                    n,
                                                    m,
                                                    both_ways};
               dlc::soft_assignment(problem, pointer<double>(energy), pointer<double>(poses_after), num_threads);
             });
}

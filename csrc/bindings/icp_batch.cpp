#include "core/icp_batch.hpp"

#include "bindings.hpp"

namespace nb = nanobind;
using Address = std::uintptr_t;

void bind_icp_batch(nb::module_& module) {
  module.def("icp_batch", [](int kind, Address source, Address target, Address source_mask, Address target_mask,
                             Address start, int64_t batch, int64_t n, int64_t m, float max_distance,
                             int64_t max_iterations, double tolerance, int neighbours, Address poses, Address fitness,
                             Address rmse, Address iterations, Address converged, int num_threads) {
    nb::gil_scoped_release release;
    const dlc::IcpBatchProblem problem{static_cast<dlc::Kind>(kind),
                                       pointer<float>(source),
                                       pointer<float>(target),
                                       pointer<uint8_t>(source_mask),
                                       pointer<uint8_t>(target_mask),
                                       pointer<double>(start),
                                       batch,
                                       n,
                                       m,
                                       max_distance,
                                       max_iterations,
                                       tolerance,
                                       neighbours};
    const dlc::IcpBatchAnswer answer{pointer<double>(poses), pointer<double>(fitness), pointer<double>(rmse),
                                     pointer<int64_t>(iterations), pointer<bool>(converged)};
    dlc::icp_batch(problem, answer, num_threads);
  });
}

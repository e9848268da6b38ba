#include "icp_batch.hpp"

#include <new>

namespace nb = nanobind;
using Address = std::uintptr_t;

void bind_icp_batch(nb::module_& module) {
  nb::class_<IcpBatch>(module, "IcpBatch")
      .def("__init__",
           [](IcpBatch* self, int kind, Address source, Address target, Address source_mask, Address target_mask,
              Address start, int64_t batch, int64_t n, int64_t m, float max_distance, int64_t max_iterations,
              double tolerance, int neighbours, Address poses, Address fitness, Address rmse, Address iterations,
              Address converged) {
             new (self) IcpBatch{
                 {static_cast<dlc::Kind>(kind), pointer<float>(source), pointer<float>(target),
                  pointer<uint8_t>(source_mask), pointer<uint8_t>(target_mask), pointer<double>(start), batch, n, m,
                  max_distance, max_iterations, tolerance, neighbours},
                 {pointer<double>(poses), pointer<double>(fitness), pointer<double>(rmse),
                  pointer<int64_t>(iterations), pointer<bool>(converged)}};
           })
      .def(
          "run", [](const IcpBatch& self, int num_threads) { dlc::icp_batch(self.problem, self.answer, num_threads); },
          nb::call_guard<nb::gil_scoped_release>());
}

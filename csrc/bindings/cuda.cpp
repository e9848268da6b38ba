// The CUDA operators (csrc/cuda/device.hpp). Addresses are of device memory, streams are addresses, too.
#include "bindings.hpp"

#if defined(DLC_CUDA)
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <tuple>

#include "cuda/device.hpp"
#include "icp_batch.hpp"

namespace nb = nanobind;
namespace cuda = dlc::cuda;
using Address = std::uintptr_t;

namespace {

#if defined(DLC_CUDA_EMULATED)
constexpr bool kEmulated = true;
#else
constexpr bool kEmulated = false;
#endif

cuda::Call on(int device, Address stream) { return {device, pointer<void>(stream)}; }
cuda::TreeMemory tree(Address memory, int64_t n) { return {pointer<const void>(memory), n}; }
cuda::Workspace workspace(Address memory, std::size_t bytes) { return {pointer<void>(memory), bytes}; }

void bind_searches(nb::module_& module) {
  module.attr("CUDA_MAX_NEIGHBOURS") = cuda::kMaxNeighbours;
  module.attr("CUDA_MAX_RAGGED_NEIGHBOURS") = cuda::kMaxRaggedNeighbours;
  module.def("cuda_sort_bytes", &cuda::sort_bytes);
  module.def("cuda_tree_bytes", &cuda::tree_bytes);
  module.def("cuda_morton_order", [](int device, Address stream, Address points, int64_t n, int bits, Address order,
                                     Address memory, std::size_t bytes) {
    cuda::morton_order(on(device, stream), pointer<float>(points), n, bits, pointer<int32_t>(order),
                       workspace(memory, bytes));
  });
  module.def("cuda_build_tree", [](int device, Address stream, Address points, int64_t n, Address out, Address memory,
                                   std::size_t bytes) {
    cuda::build_tree(on(device, stream), pointer<float>(points), n, pointer<void>(out), workspace(memory, bytes));
  });
  module.def("cuda_knn", [](int device, Address stream, Address memory, int64_t n, Address queries, Address order,
                            int64_t m, int k, float max_distance, Address distances, Address indices) {
    cuda::knn(on(device, stream), tree(memory, n), pointer<float>(queries), pointer<int32_t>(order), m, k, max_distance,
              pointer<float>(distances), pointer<int64_t>(indices));
  });
  module.def("cuda_knn_ragged", [](int device, Address stream, Address points, Address point_splits, Address queries,
                                   Address query_splits, int64_t batch, int64_t longest, int k, float max_distance,
                                   Address distances, Address indices) {
    cuda::knn_ragged(on(device, stream), pointer<float>(points), pointer<int64_t>(point_splits), pointer<float>(queries),
                     pointer<int64_t>(query_splits), batch, longest, k, max_distance, pointer<float>(distances),
                     pointer<int64_t>(indices));
  });
  module.def("cuda_radius_count", [](int device, Address stream, Address memory, int64_t n, Address queries,
                                     Address order, int64_t m, float radius, Address counts) {
    cuda::radius_count(on(device, stream), tree(memory, n), pointer<float>(queries), pointer<int32_t>(order), m, radius,
                       pointer<int64_t>(counts));
  });
  module.def("cuda_radius_fill", [](int device, Address stream, Address memory, int64_t n, Address queries,
                                    Address order, int64_t m, float radius, Address splits, Address keys,
                                    Address distances, Address indices) {
    cuda::radius_fill(on(device, stream), tree(memory, n), pointer<float>(queries), pointer<int32_t>(order), m, radius,
                      pointer<int64_t>(splits), pointer<uint64_t>(keys), pointer<float>(distances),
                      pointer<int64_t>(indices));
  });
}

void bind_groups(nb::module_& module) {
  module.def("cuda_normals", [](int device, Address stream, Address memory, Address points, Address order, int64_t n,
                                int k, float max_distance, Address normals, Address covariances) {
    cuda::normals(on(device, stream), tree(memory, n), pointer<float>(points), pointer<int32_t>(order), n, k,
                  max_distance, pointer<float>(normals), pointer<float>(covariances));
  });
  module.def("cuda_normals_of_rows", [](int device, Address stream, Address points, int64_t m, Address rows,
                                        int64_t batch, int64_t n, int k, Address normals) {
    cuda::normals_of_rows(on(device, stream), pointer<float>(points), m, pointer<int64_t>(rows), batch, n, k,
                          pointer<float>(normals));
  });
  module.def("cuda_voxel_order", [](int device, Address stream, Address points, int64_t n,
                                    std::tuple<double, double, double> origin, double voxel_size, Address codes,
                                    Address order, Address memory, std::size_t bytes) {
    const double corner[3] = {std::get<0>(origin), std::get<1>(origin), std::get<2>(origin)};
    cuda::voxel_order(on(device, stream), pointer<float>(points), n, corner, voxel_size, pointer<uint64_t>(codes),
                      pointer<int32_t>(order), workspace(memory, bytes));
  });
  module.def("cuda_voxel_means", [](int device, Address stream, Address points, int64_t n, Address order,
                                    Address starts, int64_t voxels, Address inverse, Address means) {
    cuda::voxel_means(on(device, stream), pointer<float>(points), n, pointer<int32_t>(order), pointer<int64_t>(starts),
                      voxels, pointer<int64_t>(inverse), pointer<float>(means));
  });
}

void bind_registration(nb::module_& module) {
  module.def("cuda_linearize_partials", &cuda::linearize_partials);
  module.def("cuda_linearize", [](int device, Address stream, int kind, Address source, Address source_normals,
                                  Address source_covariances, int64_t n, Address memory, int64_t m, Address target,
                                  Address target_normals, Address target_covariances, Address source_intensities,
                                  Address target_intensities, double lambda_geometric, Address host_transform,
                                  Address transform, float max_distance, int kernel, double kernel_parameter,
                                  Address indices, Address distances, Address partials, Address finished,
                                  Address sums) {
    cuda::DeviceLinearizeProblem problem{
        static_cast<dlc::Kind>(kind),
        {pointer<float>(source), pointer<float>(source_normals), pointer<float>(source_covariances),
         pointer<float>(target), pointer<float>(target_normals), pointer<float>(target_covariances),
         pointer<float>(source_intensities), pointer<float>(target_intensities), lambda_geometric},
        n,
        tree(memory, m),
        {},
        pointer<double>(transform),
        max_distance,
        static_cast<dlc::Kernel>(kernel),
        kernel_parameter,
        pointer<int64_t>(indices),
        pointer<float>(distances)};
    if (const double* const pose = pointer<double>(host_transform)) std::copy(pose, pose + 16, problem.host_pose);
    cuda::linearize(on(device, stream), problem, pointer<double>(partials), pointer<int32_t>(finished),
                    pointer<double>(sums));
  });
  module.def("cuda_icp_batch_bytes", &cuda::icp_batch_bytes);
  module.def("cuda_icp_batch", [](int device, Address stream, const IcpBatch& batch, Address scratch) {
    cuda::icp_batch(on(device, stream), batch.problem, batch.answer, pointer<void>(scratch));
  });
}

struct Assignment {  // an AssignmentProblem that Python holds between the calls that take it
  Assignment(Address source, Address target, Address poses, Address sharpness, Address outlier, Address source_weight,
             Address target_weight, Address affinity, Address target_features, Address source_bias,
             Address target_bias, int64_t channels, int64_t num_poses, int64_t batch, int64_t n, int64_t m,
             bool both_ways, int64_t strip)
      : problem{pointer<float>(source),
                pointer<float>(target),
                {pointer<float>(affinity), channels, pointer<float>(target_features), pointer<float>(source_bias),
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
                both_ways},
        strip(strip) {}
  dlc::AssignmentProblem problem;
  int64_t strip;
};

void bind_soft_assignment(nb::module_& module) {
  nb::class_<Assignment>(module, "CudaAssignment")
      .def(nb::init<Address, Address, Address, Address, Address, Address, Address, Address, Address, Address, Address,
                    int64_t, int64_t, int64_t, int64_t, int64_t, bool, int64_t>())
      .def("bytes", [](const Assignment& self,
                       bool moments) { return cuda::assignment_bytes(self.problem, self.strip, moments); })
      .def("gradient_bytes", [](const Assignment& self) { return cuda::assignment_gradient_bytes(self.problem); })
      .def("parts",
           [](const Assignment& self) {
             const cuda::AssignmentParts parts = cuda::assignment_parts(self.problem, self.strip);
             return std::make_tuple(parts.chunks, parts.tiles);
           })
      .def("sweep",
           [](const Assignment& self, int device, Address stream, bool moments, Address affinity, int64_t first,
              Address scratch) {
             cuda::assignment_sweep(on(device, stream), self.problem, self.strip, moments, pointer<float>(affinity),
                                    first, pointer<void>(scratch));
           })
      .def("finish",
           [](const Assignment& self, int device, Address stream, Address energy, Address poses_after, Address row_logs,
              Address column_logs, Address scratch) {
             cuda::assignment_finish(on(device, stream), self.problem, self.strip,
                                     {pointer<double>(energy), pointer<double>(poses_after), pointer<float>(row_logs),
                                      pointer<float>(column_logs)},
                                     pointer<void>(scratch));
           })
      .def("gradient", [](const Assignment& self, int device, Address stream, Address strip, int64_t first,
                          Address weights, Address row_logs, Address column_logs, Address affinity, Address rows,
                          Address columns, Address spread, Address centers, Address scratch) {
        cuda::assignment_gradient(
            on(device, stream), self.problem, self.strip, pointer<float>(strip), first,
            {pointer<double>(weights), pointer<float>(row_logs), pointer<float>(column_logs), pointer<float>(affinity),
             pointer<float>(rows), pointer<float>(columns), pointer<double>(spread), pointer<double>(centers)},
            pointer<void>(scratch));
      });
}

}  // namespace

void bind_cuda(nb::module_& module) {
  module.attr("CUDA_BUILT") = true;
  module.attr("CUDA_EMULATED") = kEmulated;
  module.def("cuda_device_count", &cuda::device_count);
  module.def("cuda_why_no_device", &cuda::why_no_device);
  bind_searches(module);
  bind_groups(module);
  bind_registration(module);
  bind_soft_assignment(module);
}

#else

void bind_cuda(nanobind::module_& module) {
  module.attr("CUDA_BUILT") = false;
  module.attr("CUDA_EMULATED") = false;
}

#endif

// Python passes addresses as integers (tensor.data_ptr()) after checking dtype, device and contiguity.
#pragma once
#include <nanobind/nanobind.h>

#include <cstdint>

void bind_search(nanobind::module_& module);
void bind_linearize(nanobind::module_& module);
void bind_hypotheses(nanobind::module_& module);
void bind_assignment(nanobind::module_& module);
void bind_icp_batch(nanobind::module_& module);
void bind_cuda(nanobind::module_& module);

template <typename T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

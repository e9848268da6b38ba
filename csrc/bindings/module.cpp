#include "bindings.hpp"

NB_MODULE(_core, module) {
  bind_search(module);
  bind_linearize(module);
  bind_hypotheses(module);
  bind_assignment(module);
  bind_icp_batch(module);
  bind_cuda(module);
}

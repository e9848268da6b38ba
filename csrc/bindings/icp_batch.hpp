// A batch of ICPs that Python holds for the call that takes it: the host's or a device's.
#pragma once
#include "bindings.hpp"
#include "core/icp_batch.hpp"

struct IcpBatch {
  dlc::IcpBatchProblem problem;
  dlc::IcpBatchAnswer answer;
};

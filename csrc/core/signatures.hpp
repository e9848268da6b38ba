// Signatures of histograms of orientations (SHOT: Tombari, Salti and Di Stefano, ECCV 2010), with the frame of TOLDI (Yang
// et al., Pattern Recognition 2017): z is the normal, x leans to where the surface leaves the tangent plane.
#pragma once
#include <cstdint>

namespace dlc {

class KdTree;

constexpr int kAzimuths = 8, kElevations = 2, kShells = 2;
constexpr int kCosines = 11, kSignFreeCosines = 6;

constexpr int signature_size(bool oriented) {
  return kAzimuths * kElevations * kShells * (oriented ? kCosines : kSignFreeCosines);
}

// points: (n, 3), those of the tree. signatures: (n, signature_size(oriented)), rows of unit length: cosines between the
// normals of the neighbours and z, by where the neighbours lie, each shared out between the bins about it; zeros where a
// point has fewer than four neighbours within the radius or no x.
// oriented: the signs of the normals mean something. Otherwise z is turned to where the neighbours lie, and cosines lose
// their sign.
void signatures(const KdTree& tree, const float* points, const float* normals, int64_t n, float radius, bool oriented,
                float* signatures, int num_threads);

}  // namespace dlc

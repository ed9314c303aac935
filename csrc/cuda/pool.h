// CUDA entry points. All work is put on `stream`; nothing waits for the device.
#pragma once

#include <cstdint>
#include <string>

#include "../request.h"

namespace toolbox {

// Why CUDA kernels cannot run here (an old driver, no device, none that they were compiled for), or an empty string.
std::string cuda_problem();

// Write (R, C, pooled height, pooled width) in the request's layout to `pooled`, or, where `winners` is given, only
// what won each maximum (-1: nothing). A region whose image does not exist is zero.
void pool_forward_cuda(const Request& request, void* pooled, int64_t* winners, int device, void* stream);

// Add to `gradients`, one per level in the accumulation type and the request's layout, zeroed by the caller. It adds
// with atomics, in any order.
void pool_backward_cuda(const Request& request, const void* pooled_gradient, void* const* gradients, int device,
                        void* stream);

// Bytes that pool_collect_cuda needs: a bit for each region and tile of 8 × 8 cells.
int64_t collect_workspace(const Request& request);

// Write `gradients`, one per level in the element type and the request's layout, every cell of them, always summed in
// the same order. A maximum needs `winners`; `workspace` is zeroed by the caller.
void pool_collect_cuda(const Request& request, const void* pooled_gradient, void* const* gradients,
                       const int64_t* winners, void* workspace, int device, void* stream);

}  // namespace toolbox

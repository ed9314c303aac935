// CUDA entry points. All work is put on `stream`; nothing waits for the device.
#pragma once

#include <cstdint>
#include <string>

#include "../request.h"

namespace toolbox {

// Why CUDA kernels cannot run here (an old driver, no device), or an empty string.
std::string cuda_problem();

// Write (R, C, pooled height, pooled width) in the request's layout to `pooled`, or, where `winners` is given, only the
// index of each maximum's winner (-1: none). A region whose image does not exist is zero.
void pool_forward_cuda(const Request& request, void* pooled, int64_t* winners, int device, void* stream);

// Add to `gradients`, one per level in the accumulation type and the request's layout, zeroed by the caller. The fast
// form adds with atomics; in the deterministic form one thread owns a cell, which for a maximum needs `winners`.
void pool_backward_cuda(const Request& request, const void* pooled_gradient, void* const* gradients,
                        const int64_t* winners, bool deterministic, int device, void* stream);

}  // namespace toolbox

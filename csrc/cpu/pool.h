// CPU entry points.
#pragma once

#include "../request.h"

namespace toolbox {

// First region whose image index is out of range, or -1.
int64_t first_bad_region(const Request& request);

// Write (R, C, pooled height, pooled width) in the request's layout.
void pool_forward_cpu(const Request& request, void* pooled, int threads);

// Write `gradients`, one per level in the accumulation type and the request's layout. A thread owns channels and takes
// the regions in order: no races, and the same bits for any number of threads.
void pool_backward_cpu(const Request& request, const void* pooled_gradient, void* const* gradients, int threads);

}  // namespace toolbox

// The Python module toolbox.ops._native. It knows addresses, sizes and a dtype code, not torch, so that one build
// serves every torch release. toolbox/ops/native.py is the only caller and makes sure that the addresses are right.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/pool.h"
#ifdef TOOLBOX_WITH_CUDA
#include "cuda/pool.h"
#endif

namespace py = pybind11;

namespace toolbox {
namespace {

// Raised with every change of what Python sees, so that a stale build is noticed (_INTERFACE in toolbox/ops/native.py).
constexpr int kInterface = 4;

// What stays the same from call to call, checked once: a Request without maps and regions.
Request make_settings(const std::vector<double>& scales, const std::vector<int>& numbers, int pooled_height,
                      int pooled_width, int method, int sampling_ratio, bool aligned, double canonical_size,
                      int canonical_level) {
  if (scales.empty() || scales.size() > static_cast<size_t>(kMaxLevels) || scales.size() != numbers.size()) {
    throw std::invalid_argument("1 to " + std::to_string(kMaxLevels) + " feature levels are supported, got " +
                                std::to_string(scales.size()));
  }
  Request request = {};
  request.num_levels = static_cast<int>(scales.size());
  for (int level = 0; level < request.num_levels; ++level) {
    request.levels[level].scale = scales[level];
    request.levels[level].number = numbers[level];
  }
  request.pooled_height = pooled_height;
  request.pooled_width = pooled_width;
  request.method = static_cast<Method>(method);
  request.sampling_ratio = sampling_ratio;
  request.aligned = aligned;
  request.canonical_size = canonical_size;
  request.canonical_level = canonical_level;
  return request;
}

// `shapes` are N, C, H, W of each level in a row.
Request make_request(const Request& settings, const std::vector<uint64_t>& maps, const std::vector<int64_t>& shapes,
                     uint64_t rois, int64_t regions, bool channels_last, int dtype) {
  const size_t levels = static_cast<size_t>(settings.num_levels);
  if (maps.size() != levels || shapes.size() != levels * 4) {
    throw std::invalid_argument("a map and its shape are needed for each level");
  }
  Request request = settings;
  for (size_t level = 0; level < levels; ++level) {
    const int64_t height = shapes[level * 4 + 2], width = shapes[level * 4 + 3];
    // Cells are counted by int in the kernels.
    if (height < 1 || width < 1 || height > std::numeric_limits<int>::max() / width) {
      throw std::invalid_argument("a feature map has 1 to 2**31 - 1 cells, got " + std::to_string(height) + " x " +
                                  std::to_string(width));
    }
    request.levels[level].features = maps[level];
    request.levels[level].height = static_cast<int>(height);
    request.levels[level].width = static_cast<int>(width);
  }
  request.images = shapes[0];
  request.channels = shapes[1];
  request.rois = rois;
  request.regions = regions;
  request.channels_last = channels_last;
  request.dtype = static_cast<DType>(dtype);
  return request;
}

std::vector<void*> pointers(const std::vector<uint64_t>& addresses) {
  std::vector<void*> result;
  for (const uint64_t address : addresses) result.push_back(reinterpret_cast<void*>(address));
  return result;
}

// First region whose image index is out of range, and nothing is written; or -1. It makes its own Request: on a tiny
// input an object for Python would cost 0.4 us.
int64_t forward_cpu(const Request& settings, const std::vector<uint64_t>& maps, const std::vector<int64_t>& shapes,
                    uint64_t rois, int64_t regions, bool channels_last, int dtype, uint64_t pooled, int threads) {
  const Request request = make_request(settings, maps, shapes, rois, regions, channels_last, dtype);
  // A tensor may stand for zeros that are nowhere, and says so by no other sign that is as cheap.
  const bool nowhere = request.images > 0 && std::find(maps.begin(), maps.end(), uint64_t(0)) != maps.end();
  if (nowhere || rois == 0 || pooled == 0) throw std::invalid_argument("a tensor has no memory of its own");
  const py::gil_scoped_release released;
  const int64_t bad = first_bad_region(request);
  if (bad < 0) pool_forward_cpu(request, reinterpret_cast<void*>(pooled), threads);
  return bad;
}

void backward_cpu(const Request& request, uint64_t pooled, const std::vector<uint64_t>& gradients, int threads) {
  const py::gil_scoped_release released;
  pool_backward_cpu(request, reinterpret_cast<const void*>(pooled), pointers(gradients).data(), threads);
}

#ifdef TOOLBOX_WITH_CUDA
void forward_cuda(const Request& request, uint64_t pooled, uint64_t winners, int device, uint64_t stream) {
  const py::gil_scoped_release released;
  pool_forward_cuda(request, reinterpret_cast<void*>(pooled), reinterpret_cast<int64_t*>(winners), device,
                    reinterpret_cast<void*>(stream));
}

void backward_cuda(const Request& request, uint64_t pooled, const std::vector<uint64_t>& gradients, int device,
                   uint64_t stream) {
  const py::gil_scoped_release released;
  pool_backward_cuda(request, reinterpret_cast<const void*>(pooled), pointers(gradients).data(), device,
                     reinterpret_cast<void*>(stream));
}

void collect_cuda(const Request& request, uint64_t pooled, const std::vector<uint64_t>& gradients, uint64_t winners,
                  uint64_t workspace, int device, uint64_t stream) {
  const py::gil_scoped_release released;
  pool_collect_cuda(request, reinterpret_cast<const void*>(pooled), pointers(gradients).data(),
                    reinterpret_cast<const int64_t*>(winners), reinterpret_cast<void*>(workspace), device,
                    reinterpret_cast<void*>(stream));
}
#endif

}  // namespace
}  // namespace toolbox

PYBIND11_MODULE(_native, module) {
  using namespace toolbox;
  module.doc() = "RoI pooling on the CPU, and on CUDA where it was built with nvcc.";
  module.attr("INTERFACE") = kInterface;
  module.attr("MAX_LEVELS") = kMaxLevels;
  py::class_<Request>(module, "Request", py::module_local());
  module.def("settings", &make_settings, py::arg("scales"), py::arg("numbers"), py::arg("pooled_height"),
             py::arg("pooled_width"), py::arg("method"), py::arg("sampling_ratio"), py::arg("aligned"),
             py::arg("canonical_size"), py::arg("canonical_level"));
  module.def("request", &make_request, py::arg("settings"), py::arg("maps"), py::arg("shapes"), py::arg("rois"),
             py::arg("regions"), py::arg("channels_last"), py::arg("dtype"));
  module.def("forward_cpu", &forward_cpu, py::arg("settings"), py::arg("maps"), py::arg("shapes"), py::arg("rois"),
             py::arg("regions"), py::arg("channels_last"), py::arg("dtype"), py::arg("pooled"), py::arg("threads"));
  module.def("backward_cpu", &backward_cpu, py::arg("request"), py::arg("pooled"), py::arg("gradients"),
             py::arg("threads"));
#ifdef TOOLBOX_WITH_CUDA
  module.attr("WITH_CUDA") = true;
  module.def("cuda_problem", &cuda_problem);
  module.def("forward_cuda", &forward_cuda, py::arg("request"), py::arg("pooled"), py::arg("winners"),
             py::arg("device"), py::arg("stream"));
  module.def("backward_cuda", &backward_cuda, py::arg("request"), py::arg("pooled"), py::arg("gradients"),
             py::arg("device"), py::arg("stream"));
  module.def("collect_workspace", &collect_workspace, py::arg("request"));
  module.def("collect_cuda", &collect_cuda, py::arg("request"), py::arg("pooled"), py::arg("gradients"),
             py::arg("winners"), py::arg("workspace"), py::arg("device"), py::arg("stream"));
#else
  module.attr("WITH_CUDA") = false;
#endif
}

#include <vector>

#include "isa.h"
#include "kernels.h"
#include "patch.h"
#include "pool.h"
#include "threads.h"

namespace toolbox {
namespace {

template <class T, class A>
using PoolRegion = void (*)(const RegionView<A>&, const T*, T*);

template <class T, class A>
void pool_region_plain(const RegionView<A>& view, const T* map, T* pooled) {
  pool_region<T, A>(view, map, pooled);
}

#ifdef TOOLBOX_HAS_AVX2
template <class T, class A>
TOOLBOX_TARGET_AVX2 void pool_region_avx2(const RegionView<A>& view, const T* map, T* pooled) {
  pool_region<T, A>(view, map, pooled);
}
#endif

template <class T, class A>
PoolRegion<T, A> choose_kernel() {
#ifdef TOOLBOX_HAS_AVX2
  if (use_avx2()) return pool_region_avx2<T, A>;
#endif
  return pool_region_plain<T, A>;
}

// One thread's share of a forward call, with its scratch memory.
template <class T>
class Forward {
public:
  using A = typename Accumulate<T>::type;

  explicit Forward(const Request& request) : request_(request), kernel_(choose_kernel<T, A>()) {}

  void region(int64_t index, T* pooled) {
    plan_.plan(request_, index);
    if (plan_.image < 0) return;
    const Level& level = request_.levels[plan_.level];
    const int64_t cells = int64_t(level.height) * level.width;
    const T* map = reinterpret_cast<const T*>(level.features) + plan_.image * request_.channels * cells;
    pooled += index * request_.channels * request_.bins();
    request_.channels_last ? from_nhwc(map, level, pooled) : from_nchw(map, level, pooled);
  }

private:
  void from_nhwc(const T* map, const Level& level, T* pooled) {
    const int64_t channels = request_.channels;
    kernel_(view(level.width * channels, channels, channels), map, pooled);
  }

  void from_nchw(const T* map, const Level& level, T* pooled) {
    plan_.y.compress();
    plan_.x.compress();
    const PatchCells cells = {plan_.y.used(), plan_.x.used(), level.height, level.width};
    const int64_t bins = request_.bins();
    patch_.resize(cells.count() * kPatchChannels);
    pooled_.resize(bins * kPatchChannels);
    for (int64_t c = 0; c < request_.channels; c += kPatchChannels) {
      const int64_t channels = std::min(kPatchChannels, request_.channels - c);
      cells.gather(map + c * level.height * level.width, channels, patch_.data());
      kernel_(view(cells.columns.size() * channels, channels, channels), patch_.data(), pooled_.data());
      transpose(pooled_.data(), bins, channels, channels, pooled + c * bins);
    }
  }

  RegionView<A> view(int64_t row_pitch, int64_t column_pitch, int64_t channels) const {
    const bool maximum = request_.method != Method::kAlignAverage;
    return {plan_.y.view(),
            plan_.x.view(),
            request_.pooled_height,
            request_.pooled_width,
            row_pitch,
            column_pitch,
            channels,
            channels,
            maximum};
  }

  const Request& request_;
  PoolRegion<T, A> kernel_;
  RegionPlan<A> plan_;
  std::vector<T> patch_;
  std::vector<T> pooled_;
};

template <class T>
void forward(const Request& request, void* pooled, int threads) {
  constexpr int64_t kTapsPerBin = 12;
  WorkQueue queue(request.regions, /*run=*/4);
  run_threads(threads_for(request.output_size() * kTapsPerBin, threads), [&](int) {
    Forward<T> worker(request);
    for (int64_t first, last; queue.take(&first, &last);) {
      for (int64_t index = first; index < last; ++index) worker.region(index, static_cast<T*>(pooled));
    }
  });
}

template <class A>
int64_t first_bad(const Request& request) {
  const A* rois = reinterpret_cast<const A*>(request.rois);
  for (int64_t index = 0; index < request.regions; ++index) {
    if (image_of(request, rois + index * 5) < 0) return index;
  }
  return -1;
}

}  // namespace

int64_t first_bad_region(const Request& request) {
  return request.dtype == DType::kFloat64 ? first_bad<double>(request) : first_bad<float>(request);
}

void pool_forward_cpu(const Request& request, void* pooled, int threads) {
  switch (request.dtype) {
    case DType::kFloat32:
      return forward<float>(request, pooled, threads);
    case DType::kFloat64:
      return forward<double>(request, pooled, threads);
    case DType::kFloat16:
      return forward<Half>(request, pooled, threads);
    case DType::kBFloat16:
      return forward<BFloat16>(request, pooled, threads);
  }
}

}  // namespace toolbox

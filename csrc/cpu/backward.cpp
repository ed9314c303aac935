#include <vector>

#include "isa.h"
#include "kernels.h"
#include "patch.h"
#include "pool.h"
#include "threads.h"

namespace toolbox {
namespace {

template <class T, class A>
using SpreadRegion = void (*)(const RegionView<A>&, const T*, const T*, A*);

template <class T, class A>
void spread_region_plain(const RegionView<A>& view, const T* map, const T* pooled, A* gradient) {
  spread_region<T, A>(view, map, pooled, gradient);
}

#ifdef TOOLBOX_HAS_AVX2
template <class T, class A>
TOOLBOX_TARGET_AVX2 void spread_region_avx2(const RegionView<A>& view, const T* map, const T* pooled, A* gradient) {
  spread_region<T, A>(view, map, pooled, gradient);
}
#endif

template <class T, class A>
SpreadRegion<T, A> choose_kernel() {
#ifdef TOOLBOX_HAS_AVX2
  if (use_avx2()) return spread_region_avx2<T, A>;
#endif
  return spread_region_plain<T, A>;
}

// One thread's share of a backward call: channels [first, last) of every region.
template <class T>
class Backward {
public:
  using A = typename Accumulate<T>::type;

  Backward(const Request& request, const T* pooled, void* const* gradients, int64_t first, int64_t last)
      : request_(request),
        pooled_(pooled),
        gradients_(gradients),
        first_(first),
        last_(last),
        kernel_(choose_kernel<T, A>()) {}

  void region(int64_t index) {
    plan_.plan(request_, index);
    if (plan_.image < 0) return;
    const Level& level = request_.levels[plan_.level];
    const int64_t image = plan_.image * request_.channels * level.height * level.width;
    const T* pooled = pooled_ + index * request_.channels * request_.bins();
    A* gradient = static_cast<A*>(gradients_[plan_.level]) + image;
    const T* map = maximum() ? reinterpret_cast<const T*>(level.features) + image : nullptr;
    request_.channels_last ? to_nhwc(map, level, pooled, gradient) : to_nchw(map, level, pooled, gradient);
  }

private:
  void to_nhwc(const T* map, const Level& level, const T* pooled, A* gradient) {
    const int64_t channels = request_.channels;
    const auto region = view(level.width * channels, channels, channels, last_ - first_);
    kernel_(region, maximum() ? map + first_ : nullptr, pooled + first_, gradient + first_);
  }

  void to_nchw(const T* map, const Level& level, const T* pooled, A* gradient) {
    plan_.y.compress();
    plan_.x.compress();
    const PatchCells cells = {plan_.y.used(), plan_.x.used(), level.height, level.width};
    const int64_t bins = request_.bins();
    const int64_t area = int64_t(level.height) * level.width;
    given_.resize(bins * kPatchChannels);
    for (int64_t c = first_; c < last_; c += kPatchChannels) {
      const int64_t channels = std::min(kPatchChannels, last_ - c);
      if (maximum()) {
        patch_.resize(cells.count() * kPatchChannels);
        cells.gather(map + c * area, channels, patch_.data());
      }
      transpose(pooled + c * bins, channels, bins, bins, given_.data());
      spread_.assign(cells.count() * channels, A(0));
      kernel_(view(cells.columns.size() * channels, channels, channels, channels), patch_.data(), given_.data(),
              spread_.data());
      cells.scatter_add(spread_.data(), channels, gradient + c * area);
    }
  }

  RegionView<A> view(int64_t row_pitch, int64_t column_pitch, int64_t pooled_pitch, int64_t channels) const {
    return {plan_.y.view(),        plan_.x.view(), request_.pooled_height,
            request_.pooled_width, row_pitch,      column_pitch,
            pooled_pitch,          channels,       maximum()};
  }

  bool maximum() const { return request_.method != Method::kAlignAverage; }

  const Request& request_;
  const T* pooled_;
  void* const* gradients_;
  int64_t first_;
  int64_t last_;
  SpreadRegion<T, A> kernel_;
  RegionPlan<A> plan_;
  std::vector<T> patch_;
  std::vector<T> given_;
  std::vector<A> spread_;
};

template <class T>
void backward(const Request& request, const void* pooled, void* const* gradients, int threads) {
  constexpr int64_t kTapsPerBin = 12;
  constexpr int64_t kRun = 16;  // channels of a cache line: two threads never write to the same one
  const int64_t runs = (request.channels + kRun - 1) / kRun;
  const int64_t wanted = threads_for(request.output_size() * kTapsPerBin, threads);
  const int64_t used = std::max<int64_t>(1, std::min(wanted, runs));
  run_threads(static_cast<int>(used), [&](int thread) {
    const int64_t first = runs * thread / used * kRun;
    const int64_t last = std::min(runs * (thread + 1) / used * kRun, request.channels);
    Backward<T> worker(request, static_cast<const T*>(pooled), gradients, first, last);
    for (int64_t index = 0; index < request.regions; ++index) worker.region(index);
  });
}

}  // namespace

void pool_backward_cpu(const Request& request, const void* pooled_gradient, void* const* gradients, int threads) {
  switch (request.dtype) {
    case DType::kFloat32:
      return backward<float>(request, pooled_gradient, gradients, threads);
    case DType::kFloat64:
      return backward<double>(request, pooled_gradient, gradients, threads);
    case DType::kFloat16:
      return backward<Half>(request, pooled_gradient, gradients, threads);
    case DType::kBFloat16:
      return backward<BFloat16>(request, pooled_gradient, gradients, threads);
  }
}

}  // namespace toolbox

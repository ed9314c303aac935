#include <vector>

#include "converted.h"
#include "dispatch.h"
#include "memory.h"
#include "order.h"
#include "patch.h"
#include "pool.h"
#include "threads.h"

namespace toolbox {
namespace {

// One thread's share of a forward call, with its scratch memory.
template <class T>
class Forward {
public:
  using A = typename Accumulate<T>::type;

  // `converted` are the maps of image `image` with channels innermost, or null.
  Forward(const Request& request, const ConvertedMaps<T>* converted, int64_t image)
      : request_(request), loops_(choose_loops<T, A>()), converted_(converted), image_(image) {}

  void region(int64_t index, T* pooled) {
    const A* roi = reinterpret_cast<const A*>(request_.rois) + index * 5;
    const int64_t image = image_of(request_, roi);
    if (image < 0 || (converted_ != nullptr && image != image_)) return;
    plan_.plan(request_, index);
    const Level& level = request_.levels[plan_.level];
    pooled += index * request_.channels * request_.bins();
    if (converted_ != nullptr) return from_converted(level, pooled);
    const int64_t cells = int64_t(level.height) * level.width;
    const T* map = reinterpret_cast<const T*>(level.features) + image * request_.channels * cells;
    request_.channels_last ? from_nhwc(map, level, pooled) : from_nchw(map, level, pooled);
  }

private:
  void from_nhwc(const T* map, const Level& level, T* pooled) {
    const int64_t channels = request_.channels;
    loops_.pool(view(level.width * channels, channels, channels), map, pooled);
  }

  void from_converted(const Level& level, T* pooled) {
    const int64_t bins = request_.bins();
    const int64_t channels = request_.channels;
    pooled_.resize(bins * channels);
    from_nhwc(converted_->level(plan_.level), level, pooled_.data());
    loops_.transpose(pooled_.data(), channels, pooled, bins, bins, channels);
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
      loops_.pool(view(cells.columns.size() * channels, channels, channels), patch_.data(), pooled_.data());
      loops_.transpose(pooled_.data(), channels, pooled + c * bins, bins, bins, channels);
    }
  }

  RegionView<A> view(int64_t row_pitch, int64_t column_pitch, int64_t channels) {
    return {plan_.y.view(), plan_.x.view(), plan_.taps.data(), request_.pooled_height, request_.pooled_width, row_pitch,
            column_pitch,   channels,       channels,          request_.method};
  }

  const Request& request_;
  Loops<T, A> loops_;
  const ConvertedMaps<T>* converted_;
  int64_t image_;
  RegionPlan<A> plan_;
  std::vector<T> patch_;
  std::vector<T> pooled_;
};

template <class T>
void pool_regions(const Request& request, const ConvertedMaps<T>* converted, int64_t image, T* pooled, int threads) {
  constexpr int64_t kTapsPerBin = 12;
  const std::vector<int64_t> order = reading_order<typename Accumulate<T>::type>(request);
  WorkQueue queue(request.regions, /*run=*/4);
  run_threads(threads_for(request.output_size() * kTapsPerBin, threads), [&](int) {
    Forward<T> worker(request, converted, image);
    for (int64_t first, last; queue.take(&first, &last);) {
      for (int64_t place = first; place < last; ++place) worker.region(order[place], pooled);
    }
  });
}

template <class T>
void forward(const Request& request, T* pooled, int threads) {
  using A = typename Accumulate<T>::type;
  prefer_huge_pages(pooled, request.output_size() * static_cast<int64_t>(sizeof(T)));
  if (request.channels_last || !worth_converting<A>(request)) {
    return pool_regions<T>(request, nullptr, 0, pooled, threads);
  }
  const auto transpose = choose_loops<T, A>().transpose;
  const ConvertedMaps<T> maps(request);
  for (int64_t image = 0; image < request.images; ++image) {
    maps.each_tile(threads, [&](int index, int64_t first, int64_t cells) {
      const Level& level = request.levels[index];
      const int64_t area = int64_t(level.height) * level.width;
      const T* map = reinterpret_cast<const T*>(level.features) + image * request.channels * area;
      transpose(map + first, area, maps.level(index) + first * request.channels, request.channels, request.channels,
                cells);
    });
    pool_regions(request, &maps, image, pooled, threads);
  }
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
      return forward(request, static_cast<float*>(pooled), threads);
    case DType::kFloat64:
      return forward(request, static_cast<double*>(pooled), threads);
    case DType::kFloat16:
      return forward(request, static_cast<Half*>(pooled), threads);
    case DType::kBFloat16:
      return forward(request, static_cast<BFloat16*>(pooled), threads);
  }
}

}  // namespace toolbox

#include <vector>

#include "converted.h"
#include "dispatch.h"
#include "order.h"
#include "patch.h"
#include "pool.h"
#include "threads.h"

namespace toolbox {
namespace {

// One image's maps and their gradients with channels innermost; `features` only where a maximum is found again.
template <class T, class A>
struct Converted {
  int64_t image;
  const ConvertedMaps<T>* features;
  const ConvertedMaps<A>* gradients;
};

// One thread's share of a backward call: channels [first, last) of every region.
template <class T>
class Backward {
public:
  using A = typename Accumulate<T>::type;

  Backward(const Request& request, const Converted<T, A>* converted, const T* pooled, void* const* gradients,
           int64_t first, int64_t last)
      : request_(request),
        loops_(choose_loops<T, A>()),
        converted_(converted),
        pooled_(pooled),
        gradients_(gradients),
        first_(first),
        last_(last) {}

  void region(int64_t index) {
    const A* roi = reinterpret_cast<const A*>(request_.rois) + index * 5;
    const int64_t image = image_of(request_, roi);
    if (image < 0 || (converted_ != nullptr && image != converted_->image)) return;
    plan_.plan(request_, index);
    const Level& level = request_.levels[plan_.level];
    const T* pooled = pooled_ + index * request_.channels * request_.bins();
    if (converted_ != nullptr) return to_converted(level, pooled);
    const int64_t first = image * request_.channels * level.height * level.width;
    A* gradient = static_cast<A*>(gradients_[plan_.level]) + first;
    const T* map = maximum() ? reinterpret_cast<const T*>(level.features) + first : nullptr;
    request_.channels_last ? to_nhwc(map, level, pooled, gradient) : to_nchw(map, level, pooled, gradient);
  }

private:
  void to_nhwc(const T* map, const Level& level, const T* pooled, A* gradient) {
    const int64_t channels = request_.channels;
    const auto region = view(level.width * channels, channels, channels, last_ - first_);
    loops_.spread(region, maximum() ? map + first_ : nullptr, pooled + first_, gradient + first_);
  }

  void to_converted(const Level& level, const T* pooled) {
    const int64_t bins = request_.bins();
    const int64_t own = last_ - first_;
    const int64_t channels = request_.channels;
    given_.resize(bins * own);
    loops_.transpose(pooled + first_ * bins, bins, given_.data(), own, own, bins);
    const T* map = maximum() ? converted_->features->level(plan_.level) + first_ : nullptr;
    A* gradient = converted_->gradients->level(plan_.level) + first_;
    loops_.spread(view(level.width * channels, channels, own, own), map, given_.data(), gradient);
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
      loops_.transpose(pooled + c * bins, bins, given_.data(), channels, channels, bins);
      spread_.assign(cells.count() * channels, A(0));
      loops_.spread(view(cells.columns.size() * channels, channels, channels, channels), patch_.data(), given_.data(),
                    spread_.data());
      cells.scatter_add(spread_.data(), channels, gradient + c * area);
    }
  }

  RegionView<A> view(int64_t row_pitch, int64_t column_pitch, int64_t pooled_pitch, int64_t channels) {
    return {plan_.y.view(), plan_.x.view(), plan_.taps.data(), request_.pooled_height, request_.pooled_width, row_pitch,
            column_pitch,   pooled_pitch,   channels,          request_.method};
  }

  bool maximum() const { return request_.method != Method::kAlignAverage; }

  const Request& request_;
  Loops<T, A> loops_;
  const Converted<T, A>* converted_;
  const T* pooled_;
  void* const* gradients_;
  int64_t first_;
  int64_t last_;
  RegionPlan<A> plan_;
  std::vector<T> patch_;
  std::vector<T> given_;
  std::vector<A> spread_;
};

template <class T, class A>
void spread_regions(const Request& request, const Converted<T, A>* converted, const T* pooled, void* const* gradients,
                    int threads) {
  constexpr int64_t kTapsPerBin = 12;
  constexpr int64_t kRun = 16;  // channels of a cache line: two threads never write to the same one
  const std::vector<int64_t> order = reading_order<A>(request);
  const int64_t runs = (request.channels + kRun - 1) / kRun;
  const int64_t wanted = threads_for(request.output_size() * kTapsPerBin, threads);
  const int64_t used = std::max<int64_t>(1, std::min(wanted, runs));
  run_threads(static_cast<int>(used), [&](int thread) {
    const int64_t first = runs * thread / used * kRun;
    const int64_t last = std::min(runs * (thread + 1) / used * kRun, request.channels);
    Backward<T> worker(request, converted, pooled, gradients, first, last);
    for (const int64_t index : order) worker.region(index);
  });
}

template <class T>
void backward(const Request& request, const T* pooled, void* const* gradients, int threads) {
  using A = typename Accumulate<T>::type;
  const bool converting = !request.channels_last && worth_converting<A>(request);
  if (!converting) {
    for (int index = 0; index < request.num_levels; ++index) {
      const Level& level = request.levels[index];
      const int64_t values = request.images * request.channels * level.height * level.width;
      fill_zero(gradients[index], values * static_cast<int64_t>(sizeof(A)), threads);
    }
    return spread_regions<T, A>(request, nullptr, pooled, gradients, threads);
  }
  const Loops<T, A> loops = choose_loops<T, A>();
  const bool maximum = request.method != Method::kAlignAverage;
  ConvertedMaps<A> sums(request);
  std::unique_ptr<ConvertedMaps<T>> maps;
  if (maximum) maps = std::make_unique<ConvertedMaps<T>>(request);
  const int64_t channels = request.channels;
  for (int64_t image = 0; image < request.images; ++image) {
    const auto place = [&](int index, int64_t cell) {
      const int64_t area = int64_t(request.levels[index].height) * request.levels[index].width;
      return image * channels * area + cell;
    };
    const auto area = [&](int index) { return int64_t(request.levels[index].height) * request.levels[index].width; };
    if (maximum) {
      maps->each_tile(threads, [&](int index, int64_t first, int64_t cells) {
        const T* map = reinterpret_cast<const T*>(request.levels[index].features) + place(index, first);
        loops.transpose(map, area(index), maps->level(index) + first * channels, channels, channels, cells);
      });
    }
    sums.zero(threads);
    const Converted<T, A> converted = {image, maps.get(), &sums};
    spread_regions(request, &converted, pooled, gradients, threads);
    sums.each_tile(threads, [&](int index, int64_t first, int64_t cells) {
      A* to = static_cast<A*>(gradients[index]) + place(index, first);
      loops.transpose_sums(sums.level(index) + first * channels, channels, to, area(index), cells, channels);
    });
  }
}

}  // namespace

void pool_backward_cpu(const Request& request, const void* pooled_gradient, void* const* gradients, int threads) {
  switch (request.dtype) {
    case DType::kFloat32:
      return backward(request, static_cast<const float*>(pooled_gradient), gradients, threads);
    case DType::kFloat64:
      return backward(request, static_cast<const double*>(pooled_gradient), gradients, threads);
    case DType::kFloat16:
      return backward(request, static_cast<const Half*>(pooled_gradient), gradients, threads);
    case DType::kBFloat16:
      return backward(request, static_cast<const BFloat16*>(pooled_gradient), gradients, threads);
  }
}

}  // namespace toolbox

// The order in which regions are read: neighbours after each other, so that cells come from the cache and not from
// memory. Each region's result is its own, and gradients are summed in this order by any number of threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "../request.h"

namespace toolbox {

// Indices of the regions by image, level and row; as they are, where they are too few to share a cache.
template <class A>
std::vector<int64_t> reading_order(const Request& request) {
  constexpr int64_t kFew = 8;
  std::vector<int64_t> order(request.regions);
  std::iota(order.begin(), order.end(), int64_t(0));
  if (request.regions <= kFew) return order;
  struct Place {
    int64_t image;
    int level;
    A row;
    int64_t index;
  };
  std::vector<Place> places(request.regions);
  const A* roi = reinterpret_cast<const A*>(request.rois);
  for (int64_t index = 0; index < request.regions; ++index, roi += 5) {
    const A row = roi[2] + roi[4];
    places[index] = {image_of(request, roi), choose_level(request, roi), std::isfinite(row) ? row : A(0), index};
  }
  std::sort(places.begin(), places.end(), [](const Place& a, const Place& b) {
    if (a.image != b.image) return a.image < b.image;
    if (a.level != b.level) return a.level < b.level;
    if (a.row != b.row) return a.row < b.row;
    return a.index < b.index;
  });
  std::transform(places.begin(), places.end(), order.begin(), [](const Place& place) { return place.index; });
  return order;
}

}  // namespace toolbox

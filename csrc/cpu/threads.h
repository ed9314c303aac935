// Threads that live for one call: nothing is left behind that a fork could break.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace toolbox {

// Threads worth starting: one per so much work (in multiply-adds), at most as many as allowed.
inline int threads_for(int64_t work, int allowed) {
  constexpr int64_t kWorkPerThread = 1 << 20;
  return static_cast<int>(std::clamp<int64_t>(work / kWorkPerThread, 1, std::max(allowed, 1)));
}

// Run body(0) … body(threads - 1) at once. A system that refuses another thread leaves its part to this one.
template <class Body>
void run_threads(int threads, const Body& body) {
  if (threads == 1) return body(0);
  std::exception_ptr failure;
  std::mutex guard;
  const auto guarded = [&](int index) {
    try {
      body(index);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(guard);
      failure = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  std::vector<int> refused;
  others.reserve(threads);
  refused.reserve(threads);
  for (int index = 1; index < threads; ++index) {
    try {
      others.emplace_back(guarded, index);
    } catch (const std::exception&) {  // no more threads, or no memory for one
      refused.push_back(index);
    }
  }
  guarded(0);
  for (const int index : refused) guarded(index);
  for (std::thread& other : others) other.join();
  if (failure) std::rethrow_exception(failure);
}

// Give out 0 … count - 1 in small runs, so that slow items do not hold a thread's share up.
class WorkQueue {
public:
  WorkQueue(int64_t count, int64_t run) : count_(count), run_(run) {}

  bool take(int64_t* first, int64_t* last) {
    *first = next_.fetch_add(run_);
    *last = std::min(*first + run_, count_);
    return *first < count_;
  }

private:
  int64_t count_;
  int64_t run_;
  std::atomic<int64_t> next_{0};
};

}  // namespace toolbox

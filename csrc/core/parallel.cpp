#include "core/parallel.hpp"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>

#ifndef _WIN32
#include <pthread.h>
#endif

namespace dlc {
namespace {

constexpr int kMaxThreads = 256;

thread_local bool inside_body = false;

struct InsideBody {
  InsideBody() { inside_body = true; }
  ~InsideBody() { inside_body = false; }
};

struct Job {
  const std::function<void(int64_t, int64_t)>& body;
  int64_t n, grain, blocks;
  std::atomic<int64_t> next{0};
  std::mutex error_mutex;
  std::exception_ptr error;

  void work() {
    InsideBody guard;
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < blocks;) {
      try {
        body(i * grain, std::min(n, (i + 1) * grain));
      } catch (...) {
        std::lock_guard<std::mutex> lock(error_mutex);
        if (!error) error = std::current_exception();
        next.store(blocks, std::memory_order_relaxed);
      }
    }
  }
};

class Pool {
 public:
  std::mutex busy;  // held by the one caller that uses the workers

  void run(Job& job, int workers) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!stopping_) grow(workers);
      job_ = &job;
      wanted_ = std::min(workers, static_cast<int>(threads_.size()));
    }
    wake_.notify_all();
    job.work();
    std::unique_lock<std::mutex> lock(mutex_);
    job_ = nullptr;  // a worker that wakes only now finds nothing
    done_.wait(lock, [&] { return working_ == 0; });
  }

  void stop() {
    std::vector<std::thread> threads;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
      threads.swap(threads_);
    }
    wake_.notify_all();
    for (std::thread& thread : threads) thread.join();
  }

 private:
  void grow(int workers) {
    try {
      while (static_cast<int>(threads_.size()) < workers) threads_.emplace_back([this] { serve(); });
    } catch (const std::system_error&) {
      // No more threads to be had: the caller and those that started do the work.
    }
  }

  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return stopping_ || (job_ && wanted_ > 0); });
      if (stopping_) return;
      Job& job = *job_;
      --wanted_;
      ++working_;
      lock.unlock();
      job.work();
      lock.lock();
      if (--working_ == 0) done_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> threads_;
  Job* job_ = nullptr;
  int wanted_ = 0;   // workers that may still join the job
  int working_ = 0;  // workers inside the job
  bool stopping_ = false;
};

std::atomic<Pool*> current_pool{nullptr};

// A pool is never freed: at exit another thread may still be inside run(), and the child of a fork must not touch the
// locks and threads of its parent.
Pool& pool() {
  Pool* present = current_pool.load(std::memory_order_acquire);
  if (present) return *present;
  Pool* fresh = new Pool;
  if (current_pool.compare_exchange_strong(present, fresh, std::memory_order_acq_rel)) return *fresh;
  delete fresh;  // another thread was first; this one has no threads yet
  return *present;
}

#ifndef _WIN32  // joining while a DLL unloads would deadlock there; Windows ends the threads itself
struct Lifetime {
  Lifetime() {
    pthread_atfork(nullptr, nullptr, [] { current_pool.store(nullptr, std::memory_order_release); });
  }
  ~Lifetime() {
    if (Pool* present = current_pool.load(std::memory_order_acquire)) present->stop();
  }
} lifetime;
#endif

void run_serially(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  for (int64_t begin = 0; begin < n; begin += grain) body(begin, std::min(n, begin + grain));
}

}  // namespace

int hardware_threads() {
  static const int count = std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, kMaxThreads);
  return count;
}

void parallel_for(int64_t n, int64_t grain, int num_threads, const std::function<void(int64_t, int64_t)>& body) {
  if (n <= 0) return;
  grain = std::clamp<int64_t>(grain, 1, n);
  const int64_t blocks = (n - 1) / grain + 1;
  int64_t threads = num_threads <= 0 ? hardware_threads() : std::min(num_threads, kMaxThreads);
  threads = std::min(threads, blocks);
  if (threads == 1 || inside_body) return run_serially(n, grain, body);
  Pool& workers = pool();
  std::unique_lock<std::mutex> lock(workers.busy, std::try_to_lock);
  if (!lock) return run_serially(n, grain, body);
  Job job{body, n, grain, blocks, {}, {}, {}};
  workers.run(job, static_cast<int>(threads) - 1);
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace dlc

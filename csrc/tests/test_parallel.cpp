// The pool: every block once, exceptions, nesting, callers side by side, reductions, forks.
#include "core/parallel.hpp"

#include <atomic>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>

#include "check.hpp"

#ifndef _WIN32
#include <sys/wait.h>
#include <unistd.h>
#endif

namespace {

void check_blocks(int64_t n, int64_t grain, int threads) {
  std::vector<std::atomic<int>> seen(static_cast<std::size_t>(n));
  std::atomic<bool> as_promised{true};
  const int64_t step = grain < 1 ? 1 : grain;
  dlc::parallel_for(n, grain, threads, [&](int64_t begin, int64_t end) {
    if (begin % step != 0 || end != std::min(n, begin + step)) as_promised = false;
    for (int64_t i = begin; i < end; ++i) ++seen[static_cast<std::size_t>(i)];
  });
  CHECK(as_promised);
  for (const auto& times : seen) CHECK(times == 1);
}

void check_exceptions() {
  for (int round = 0; round < 50; ++round) {
    bool caught = false;
    std::atomic<int> ran{0};
    const int threads = 1 + round % 3;
    try {
      dlc::parallel_for(1000, 1, threads, [&](int64_t begin, int64_t) {
        ++ran;
        if (begin == 7) throw std::runtime_error("seven");
      });
    } catch (const std::runtime_error& error) {
      caught = std::string(error.what()) == "seven";
    }
    CHECK(caught);
    CHECK(threads > 1 || ran == 8);
    check_blocks(1000, 10, 3);  // usable afterwards
  }
}

// With two blocks that wait for each other, two threads must be at work.
void check_really_parallel() {
  std::atomic<int> arrived{0};
  std::set<std::thread::id> ids;
  std::mutex mutex;
  dlc::parallel_for(3, 1, 3, [&](int64_t, int64_t) {
    ++arrived;
    while (arrived < 3) std::this_thread::yield();
    std::lock_guard<std::mutex> lock(mutex);
    ids.insert(std::this_thread::get_id());
  });
  CHECK(ids.size() == 3);
}

void check_nesting() {
  std::atomic<int> total{0}, strayed{0};
  dlc::parallel_for(8, 1, 3, [&](int64_t, int64_t) {
    const auto outer = std::this_thread::get_id();
    dlc::parallel_for(100, 1, 3, [&](int64_t, int64_t) {
      ++total;
      if (std::this_thread::get_id() != outer) ++strayed;
    });
  });
  CHECK(total == 800);
  CHECK(strayed == 0);
}

void check_callers_side_by_side() {
  std::atomic<int64_t> total{0};
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c)
    callers.emplace_back([&] {
      for (int round = 0; round < 200; ++round)
        dlc::parallel_for(1000, 7, 3, [&](int64_t begin, int64_t end) { total += end - begin; });
    });
  for (std::thread& caller : callers) caller.join();
  CHECK(total == 4 * 200 * 1000);
}

void check_reduction() {
  const auto sum = [](int64_t n, int threads) {
    return dlc::parallel_reduce<double>(n, 64, threads, [](int64_t begin, int64_t end) {
      double partial = 0;
      for (int64_t i = begin; i < end; ++i) partial += 1.0 / static_cast<double>(3 * i + 1);
      return partial;
    });
  };
  CHECK(sum(0, 2) == 0);
  const double expected = sum(100000, 1);
  CHECK(std::fabs(expected - 4.9) < 0.5);
  for (int round = 0; round < 20; ++round)
    for (const int threads : {0, 2, 3, 8}) CHECK(sum(100000, threads) == expected);
}

// ThreadSanitizer does not follow threads that the child of a fork of many threads starts.
#if !defined(_WIN32) && !defined(__SANITIZE_THREAD__)
#define DLC_FORKS
#endif

#ifdef DLC_FORKS
// The child has none of the parent's threads, and another thread of the parent may hold every lock of the pool.
void check_fork() {
  std::atomic<bool> stop{false};
  std::thread disturber([&] {
    while (!stop) dlc::parallel_for(64, 1, 3, [](int64_t, int64_t) {});
  });
  for (int round = 0; round < 20; ++round) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(20);  // a hang is a failure
      std::atomic<int> arrived{0};
      dlc::parallel_for(2, 1, 2, [&](int64_t, int64_t) {
        ++arrived;
        while (arrived < 2) std::this_thread::yield();
      });
      _exit(arrived == 2 ? 0 : 1);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
  stop = true;
  disturber.join();
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    dlc::parallel_for(64, 1, 2, [](int64_t, int64_t) {});
    std::exit(0);  // with the destructors of this process
  }
  int status = -1;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}
#endif

}  // namespace

int main() {
  for (const int threads : {-1, 0, 1, 2, 3, 300})
    for (const int64_t n : {0, 1, 2, 10, 1000})
      for (const int64_t grain : {-1, 0, 1, 3, 10, 5000}) check_blocks(n, grain, threads);
  CHECK(dlc::hardware_threads() >= 1);
  check_really_parallel();
  check_exceptions();
  check_nesting();
  check_callers_side_by_side();
  check_reduction();
#ifdef DLC_FORKS
  check_fork();
#endif
  return failures() ? 1 : 0;
}

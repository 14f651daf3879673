#include "cpu/parallel.hpp"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

namespace fp8sim {
namespace {

// Below this many elements, waking a thread costs more than it saves.
constexpr int64_t kWorthThreads = int64_t{1} << 17;

struct Loop {
    const std::function<void(int64_t, int64_t)>* body;
    int64_t size;
    int64_t grain;
    std::atomic<int64_t> next{0};

    void run() {
        for (int64_t begin = next.fetch_add(grain); begin < size; begin = next.fetch_add(grain)) {
            (*body)(begin, std::min(size, begin + grain));
        }
    }
};

// Workers sleep until a loop comes, take part, and report when they have left it. They are never joined: the pool lives
// as long as the process, so that leaving the process waits for nobody.
class Pool {
public:
    void run(Loop& loop, int helpers) {
        std::unique_lock<std::mutex> lock(mutex_);
        while (workers_ < helpers && start_worker()) continue;
        loop_ = &loop;
        seats_ = helpers;
        lock.unlock();
        wake_.notify_all();
        loop.run();
        lock.lock();
        loop_ = nullptr;
        left_.wait(lock, [this] { return inside_ == 0; });
    }

    std::atomic<bool> busy{false};  // one loop at a time

private:
    bool start_worker() {
        try {
            std::thread([this] { work(); }).detach();
        } catch (const std::system_error&) {  // no more threads to be had: go on with those that there are
            return false;
        }
        ++workers_;
        return true;
    }

    void work() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            wake_.wait(lock, [this] { return loop_ != nullptr && seats_ > 0; });
            Loop* loop = loop_;
            --seats_;
            ++inside_;
            lock.unlock();
            loop->run();
            lock.lock();
            if (--inside_ == 0) left_.notify_one();
        }
    }

    std::mutex mutex_;
    std::condition_variable wake_, left_;
    Loop* loop_ = nullptr;
    int seats_ = 0;    // helpers that the loop still wants
    int inside_ = 0;   // workers in the loop
    int workers_ = 0;
};

alignas(Pool) unsigned char pool_storage[sizeof(Pool)];
Pool* pool = nullptr;

// A child of fork() has none of the workers, and locks in any state: it starts with a new pool in the same place.
void renew_pool() { pool = new (pool_storage) Pool; }

const bool pool_is_ready = [] {
    renew_pool();
    return pthread_atfork(nullptr, nullptr, renew_pool) == 0;
}();

int available_processors() {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
    return std::max(1u, std::thread::hardware_concurrency());
}

std::atomic<int> thread_count{0};  // 0: not chosen yet

}  // namespace

int num_threads() {
    int count = thread_count.load();
    if (count == 0) thread_count.compare_exchange_strong(count, available_processors());
    return thread_count.load();
}

void set_num_threads(int count) { thread_count.store(count); }

void parallel_for(int64_t size, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
    Loop loop{&body, size, grain};
    const int64_t ranges = (size + grain - 1) / grain;
    const int helpers = static_cast<int>(std::min<int64_t>(num_threads(), ranges)) - 1;
    if (size < kWorthThreads || helpers < 1 || !pool_is_ready) return loop.run();
    if (pool->busy.exchange(true)) return loop.run();
    pool->run(loop, helpers);
    pool->busy.store(false);
}

}  // namespace fp8sim

// Threads of a GPU as fibers of one CPU thread: they run until they wait for something, in an order that can be chosen.
//
// What the hardware does on its own (copies, products of warpgroups) happens as early or as late as it may: a kernel
// whose barriers do not order it gives wrong results one way or the other, and one that waits for ever is told so.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace on_host {

enum class When { kEarly, kLate };

[[noreturn]] inline void fault(const std::string& what) { throw std::runtime_error(what); }

inline void require(bool condition, const char* what) {
    if (!condition) fault(what);
}

// A meeting of threads: the last to come does the work of all, then everyone goes on.
struct Meeting {
    int arrived = 0;
    unsigned generation = 0;
};

constexpr uint32_t kFirstAddress = 1024;

// The products of a warpgroup that were started: those of each committed group, and those not yet committed.
struct Warpgroup {
    Meeting meeting;
    std::vector<float*> sums = std::vector<float*>(128);
    std::vector<const uint32_t*> words = std::vector<const uint32_t*>(128);
    std::vector<std::function<void()>> open;
    std::deque<std::vector<std::function<void()>>> groups;
};

struct Warp {
    Meeting meeting;
    std::vector<void*> arguments = std::vector<void*>(3 * 32);
};

struct Block {
    int index;
    int rank;
    std::vector<uint8_t> memory;
    std::vector<Meeting> meetings = std::vector<Meeting>(16);
    std::vector<Warpgroup> warpgroups;
    std::vector<Warp> warps;

    uint8_t* at(uint32_t address, size_t bytes) {
        if (address < kFirstAddress || address - kFirstAddress + bytes > memory.size()) {
            fault("shared memory at " + std::to_string(address) + " is outside of the block's");
        }
        return memory.data() + (address - kFirstAddress);
    }
};

constexpr size_t kStack = 1 << 17;

using Stack = std::unique_ptr<char[]>;

// Stacks of fibers that are gone: asking the system for new ones takes longer than what most fibers do.
inline std::vector<Stack> spare_stacks;

inline Stack take_stack() {
    if (spare_stacks.empty()) return Stack(new char[kStack]);
    Stack stack = std::move(spare_stacks.back());
    spare_stacks.pop_back();
    return stack;
}

struct Fiber {
    ucontext_t context;
    Stack stack = take_stack();
    int thread;
    Block* block;
    bool finished = false;
    std::function<bool()> ready;
    std::string error;
    std::deque<std::vector<std::function<void()>>> copies{{}};

    ~Fiber() { spare_stacks.push_back(std::move(stack)); }
};

// A cluster of blocks, and how its fibers take turns.
struct Cluster {
    When when;
    bool backwards;
    int blocks_in_grid;
    std::vector<std::unique_ptr<Block>> blocks;
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::deque<std::function<void()>> in_flight;
    Meeting meeting;
    std::function<void()> kernel;
    ucontext_t scheduler;
};

inline Cluster* cluster = nullptr;
inline Fiber* running = nullptr;

inline void wait_until(std::function<bool()> ready) {
    if (ready()) return;
    running->ready = std::move(ready);
    swapcontext(&running->context, &cluster->scheduler);
}

// `last` runs once, when all `count` threads have come.
template <class Last>
void meet(Meeting& meeting, int count, const Last& last) {
    if (++meeting.arrived == count) {
        last();
        meeting.arrived = 0;
        ++meeting.generation;
        return;
    }
    wait_until([&meeting, generation = meeting.generation] { return meeting.generation != generation; });
}

inline void run_fiber() {
    try {
        cluster->kernel();
    } catch (const std::exception& error) {
        running->error = error.what();
    }
    running->finished = true;
    swapcontext(&running->context, &cluster->scheduler);
}

// Runs a fiber until it waits; whether it could run at all.
inline bool resume(Fiber& fiber) {
    if (fiber.finished || (fiber.ready && !fiber.ready())) return false;
    fiber.ready = nullptr;
    running = &fiber;
    swapcontext(&cluster->scheduler, &fiber.context);
    if (!fiber.error.empty()) fault("thread " + std::to_string(fiber.thread) + ": " + fiber.error);
    return true;
}

// Runs every warp as far as it gets without the others, so that they are as far apart as they may be; whether one could
// run at all.
inline bool take_turns() {
    constexpr size_t kWarp = 32;
    bool progress = false;
    const size_t count = cluster->fibers.size();
    for (size_t warp = 0; warp < count; warp += kWarp) {
        bool again = true;
        while (again) {
            again = false;
            for (size_t i = warp; i < std::min(warp + kWarp, count); ++i) {
                again |= resume(*cluster->fibers[cluster->backwards ? count - 1 - i : i]);
            }
            progress |= again;
        }
    }
    return progress;
}

inline bool all_finished() {
    for (const auto& fiber : cluster->fibers) {
        if (!fiber->finished) return false;
    }
    return true;
}

// Set by the test that the emulation notices what never comes.
inline bool copies_are_lost = false;

// Lets `work` happen at once, or when nothing else can.
inline void on_its_own(std::function<void()> work) {
    if (copies_are_lost) return;
    if (cluster->when == When::kEarly) work();
    else cluster->in_flight.push_back(std::move(work));
}

inline std::unique_ptr<Fiber> make_fiber(Block& block, int thread) {
    auto fiber = std::make_unique<Fiber>();
    fiber->thread = thread;
    fiber->block = &block;
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->stack.get();
    fiber->context.uc_stack.ss_size = kStack;
    fiber->context.uc_link = nullptr;
    makecontext(&fiber->context, run_fiber, 0);
    return fiber;
}

inline void run_cluster(Cluster& given, int threads) {
    cluster = &given;
    for (const auto& block : given.blocks) {
        block->warps.resize((threads + 31) / 32);
        block->warpgroups.resize((threads + 127) / 128);
        for (int thread = 0; thread < threads; ++thread) given.fibers.push_back(make_fiber(*block, thread));
    }
    while (true) {
        if (take_turns()) continue;
        if (!given.in_flight.empty()) {
            const auto work = std::move(given.backwards ? given.in_flight.back() : given.in_flight.front());
            if (given.backwards) given.in_flight.pop_back();
            else given.in_flight.pop_front();
            work();
            continue;
        }
        if (all_finished()) return;
        fault("deadlock: every thread waits");
    }
}

// Clusters of `blocks` blocks one after the other, each in the order of `schedule`.
struct Schedule {
    int processors;
    int late;
    int backwards;
};

inline void run_grid(const Schedule& schedule, int clusters, int blocks, int threads, int shared_bytes,
                     const std::function<void()>& kernel) {
    for (int index = 0; index < clusters; ++index) {
        Cluster cluster;
        cluster.when = schedule.late ? When::kLate : When::kEarly;
        cluster.backwards = schedule.backwards;
        cluster.blocks_in_grid = clusters * blocks;
        cluster.kernel = kernel;
        for (int rank = 0; rank < blocks; ++rank) {
            auto block = std::make_unique<Block>();
            block->index = index * blocks + rank;
            block->rank = rank;
            block->memory.assign(shared_bytes, 0xFF);
            cluster.blocks.push_back(std::move(block));
        }
        run_cluster(cluster, threads);
    }
}

// 0, or 1 with what went wrong in `error`.
template <class Run>
int report(const Run& run, char* error, size_t size) {
    try {
        run();
        return 0;
    } catch (const std::exception& caught) {
        snprintf(error, size, "%s", caught.what());
        return 1;
    }
}

}  // namespace on_host

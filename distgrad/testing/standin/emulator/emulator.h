// Runs CUDA C++ kernels on the host, for tests: each thread of a block is a fiber, blocks run one
// after the other.  Barriers, shuffles, shared memory and atomics behave as on a device.
//
// A fiber runs until a barrier or a shuffle makes it wait.  Fibers take turns in a random order, and
// some warps run far ahead of others, so a missing barrier shows as a wrong result for some seed.  Shared memory is garbage when a block
// begins.  What no device could go on from (a barrier that some threads never reach, a shuffle with
// lanes that have returned, too little shared memory) ends the launch with a message.
//
// Compiled with -fno-weak, so that all shared variables lie in .bss, and nothing else does.
#pragma once
#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <utility>

#define EMULATED 1
#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct uint2 { unsigned x, y; };
struct uint3 { unsigned x, y, z; };
struct uint4 { unsigned x, y, z, w; };
struct dim3 { unsigned x, y, z; };

namespace emulator {

const int STACK = 1 << 16, MOST = 1024, WARP = 32, GUARD = 64, GARBAGE = 0xCD;

struct Barrier {
  int arrived, generation;
};

struct Fiber {
  jmp_buf at;
  ucontext_t start;
  char* stack;
  uint3 index;
  bool begun, done;
};

#define STATE static __attribute__((section("emulator_state")))
STATE Fiber fibers[MOST];
STATE jmp_buf scheduler;
STATE int current, count, alive, warp_alive[MOST / WARP];
STATE Barrier block_barrier, warp_barriers[MOST / WARP];
STATE uint64_t lanes[MOST];
STATE char dynamic[(1 << 18) + GUARD] __attribute__((aligned(16)));
STATE unsigned dynamic_size;
STATE const char* failure;
STATE bool progress;
STATE uint3 thread_index, block_index;
STATE dim3 block_dim, grid_dim;
STATE void (*body)(void*);
STATE void* body_arguments;
STATE uint64_t random_state;

extern "C" char __bss_start[] __attribute__((visibility("hidden")));
extern "C" char _end[] __attribute__((visibility("hidden")));

static unsigned draw(unsigned below) {  // xorshift
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return (unsigned)((random_state >> 11) % below);
}

__attribute__((noinline)) static void pause() {
  int me = current;
  if (!_setjmp(fibers[me].at)) _longjmp(scheduler, 1);
}

static void open_if_all(Barrier& barrier, int all) {
  if (all && barrier.arrived == all) {
    barrier.arrived = 0;
    barrier.generation++;
    progress = true;
  }
}

static void wait_at(Barrier& barrier, const int& all) {
  int generation = barrier.generation;
  barrier.arrived++;
  open_if_all(barrier, all);
  while (barrier.generation == generation) pause();
}

static void live() {  // of a fiber, for launch after launch
  for (;;) {
    body(body_arguments);
    Fiber& fiber = fibers[current];
    fiber.done = progress = true;
    alive--;
    warp_alive[current / WARP]--;
    open_if_all(block_barrier, alive);  // a barrier waits for no thread that has returned
    pause();
  }
}

static void resume(int i) {
  Fiber& fiber = fibers[i];
  current = i;
  thread_index = fiber.index;
  if (_setjmp(scheduler)) return;
  if (fiber.begun) _longjmp(fiber.at, 1);
  if (!fiber.stack) fiber.stack = (char*)malloc(STACK);
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack;
  fiber.start.uc_stack.ss_size = STACK;
  makecontext(&fiber.start, live, 0);
  fiber.begun = true;
  setcontext(&fiber.start);
}

static void shuffled(unsigned* order, int n) {
  for (int i = n - 1; i > 0; i--) std::swap(order[i], order[draw(i + 1)]);
}

// Lets each thread of a warp go on once; some warps go on until they can no more.
static void run_warp(unsigned warp) {
  unsigned order[WARP];
  for (int i = 0; i < WARP; i++) order[i] = warp * WARP + i;
  const bool far = draw(2);
  bool moved = false;
  do {
    progress = false;
    shuffled(order, WARP);
    for (unsigned i : order)
      if (!fibers[i].done && !failure) resume(i);
    moved |= progress;
  } while (far && progress && !failure);
  progress = moved;
}

static void run_block() {
  block_barrier = {0, 0};
  alive = count;
  memset(__bss_start, GARBAGE, _end - __bss_start);
  memset(dynamic, GARBAGE, dynamic_size + GUARD);
  for (int w = 0; w < count / WARP; w++) {
    warp_barriers[w] = {0, 0};
    warp_alive[w] = WARP;
  }
  for (int i = 0; i < count; i++) {
    unsigned n = i, x = block_dim.x, y = block_dim.y;
    fibers[i].index = {n % x, n / x % y, n / (x * y)};
    fibers[i].done = false;
  }
  unsigned order[MOST / WARP];
  for (int w = 0; w < count / WARP; w++) order[w] = w;
  while (alive && !failure) {
    bool moved = false;
    shuffled(order, count / WARP);
    for (int w = 0; w < count / WARP && !failure; w++) {
      run_warp(order[w]);
      moved |= progress;
    }
    if (!moved && !failure) failure = "some threads wait at a barrier that others never reach";
  }
  for (int i = 0; i < GUARD; i++)
    if (dynamic[dynamic_size + i] != (char)GARBAGE && !failure)
      failure = "written behind the dynamic shared memory";
}

static const char* launch(const unsigned* dims, unsigned seed, void (*kernel)(void*), void* given) {
  dynamic_size = dims[6];
  grid_dim = {dims[0], dims[1], dims[2]};
  block_dim = {dims[3], dims[4], dims[5]};
  count = dims[3] * dims[4] * dims[5];
  random_state = seed * 0x9E3779B97F4A7C15ull + 0x2545F4914F6CDD1Dull;
  body = kernel;
  body_arguments = given;
  failure = nullptr;
  for (unsigned z = 0; z < dims[2]; z++)
    for (unsigned y = 0; y < dims[1]; y++)
      for (unsigned x = 0; x < dims[0] && !failure; x++) {
        block_index = {x, y, z};
        run_block();
      }
  if (failure)
    for (Fiber& fiber : fibers) fiber.begun = false;  // they wait somewhere for ever
  return failure;
}

// ---------------------------------------------------------------- the parameters of a kernel
template <class A>
struct Letter {  // a structure given by value
  static const char value = __is_class(A) ? 'S' : '?';
};
template <class A>
struct Letter<A*> {
  static const char value = 'P';
};
template <>
struct Letter<long long> {
  static const char value = 'q';
};
template <>
struct Letter<double> {
  static const char value = 'd';
};

template <class... A>
struct Call {
  void (*kernel)(A...);
  void** values;

  template <size_t... I>
  void spread(std::index_sequence<I...>) {
    kernel(*(A*)values[I]...);
  }
  static void run(void* call) { ((Call*)call)->spread(std::index_sequence_for<A...>()); }
};

template <class... A>
const char* letters(void (*)(A...)) {
  static const char found[] = {Letter<A>::value..., 0};
  return found;
}

template <class... A>
const char* start(void (*kernel)(A...), const unsigned* dims, unsigned seed, void** values) {
  Call<A...> call = {kernel, values};
  return launch(dims, seed, Call<A...>::run, &call);
}

// ---------------------------------------------------------------- warps
template <class V>
V shuffle(unsigned mask, V value, int lane) {
  int warp = current / WARP;
  if (mask != 0xffffffffu || warp_alive[warp] != WARP) {
    failure = "a shuffle without all lanes of its warp";
    pause();
  }
  uint64_t word = 0;
  memcpy(&word, &value, sizeof value);
  lanes[current] = word;
  wait_at(warp_barriers[warp], warp_alive[warp]);
  word = lanes[warp * WARP + (lane & (WARP - 1))];
  memcpy(&value, &word, sizeof value);
  wait_at(warp_barriers[warp], warp_alive[warp]);
  return value;
}

inline unsigned ballot(unsigned mask, int predicate) {
  int warp = current / WARP;
  shuffle(mask, predicate, 0);
  lanes[current] = predicate != 0;
  wait_at(warp_barriers[warp], warp_alive[warp]);
  unsigned found = 0;
  for (int lane = 0; lane < WARP; lane++) found |= (unsigned)lanes[warp * WARP + lane] << lane;
  wait_at(warp_barriers[warp], warp_alive[warp]);
  return found;
}

inline int lane() { return current % WARP; }

}  // namespace emulator

#define threadIdx emulator::thread_index
#define blockIdx emulator::block_index
#define blockDim emulator::block_dim
#define gridDim emulator::grid_dim
#define DYNAMIC_SHARED(type, name) type* name = (type*)emulator::dynamic

inline void __syncthreads() { emulator::wait_at(emulator::block_barrier, emulator::alive); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { emulator::shuffle(mask, 0, 0); }
inline void __threadfence() {}
template <class V>
V __shfl_sync(unsigned mask, V value, int lane) {
  return emulator::shuffle(mask, value, lane);
}
template <class V>
V __shfl_xor_sync(unsigned mask, V value, int bits) {
  return emulator::shuffle(mask, value, emulator::lane() ^ bits);
}
template <class V>
V __shfl_down_sync(unsigned mask, V value, int by) {
  int from = emulator::lane() + by;
  return emulator::shuffle(mask, value, from < emulator::WARP ? from : emulator::lane());
}
template <class V>
V __shfl_up_sync(unsigned mask, V value, int by) {
  int from = emulator::lane() - by;
  return emulator::shuffle(mask, value, from >= 0 ? from : emulator::lane());
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return emulator::ballot(mask, predicate);
}

// ---------------------------------------------------------------- intrinsics
template <class V>
V atomicAdd(V* place, V value) {
  V before = *place;
  *place += value;
  return before;
}
template <class V>
V atomicCAS(V* place, V expected, V value) {
  V before = *place;
  if (before == expected) *place = value;
  return before;
}
template <class V>
V atomicMax(V* place, V value) {
  V before = *place;
  if (value > before) *place = value;
  return before;
}
template <class V>
V __ldg(const V* place) {
  return *place;
}
inline float __uint_as_float(unsigned bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  memcpy(&bits, &value, 4);
  return bits;
}
inline int __float_as_int(float value) { return (int)__float_as_uint(value); }
inline float __int_as_float(int bits) { return __uint_as_float((unsigned)bits); }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return sqrt(a); }
template <class V>
V min(V a, V b) {
  return b < a ? b : a;
}
template <class V>
V max(V a, V b) {
  return a < b ? b : a;
}

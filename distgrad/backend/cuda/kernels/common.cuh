// What all kernels share: number types, 16-byte accesses, sums over warps and blocks.
//
// A source file is compiled once for each choice of its types, given as macros (-DT_TYPE=bf16), by NVRTC
// for a device, and by a host compiler for tests (EMULATED).  Kernels take pointers, long long and
// double, which is what CuPy makes of arrays, Python's int and Python's float; 0 is no array.
#pragma once

#ifndef EMULATED
#define DYNAMIC_SHARED(type, name)                     \
  extern __shared__ __align__(16) char name##_bytes[]; \
  type* name = (type*)name##_bytes
#endif
#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads)

const unsigned ALL = 0xffffffffu;  // lanes of a warp

// ---------------------------------------------------------------- 16-bit numbers
struct bf16 {
  unsigned short bits;
  bf16() = default;
  __device__ __forceinline__ explicit bf16(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
#else
    unsigned u = __float_as_uint(x);
    bits = x != x ? 0x7fc0 : (unsigned short)((u + 0x7fff + (u >> 16 & 1)) >> 16);
#endif
  }
  __device__ __forceinline__ operator float() const {
    return __uint_as_float((unsigned)bits << 16);
  }
};

struct half {
  unsigned short bits;
  half() = default;
#ifdef EMULATED
  explicit half(float x) {
    unsigned u = __float_as_uint(x), sign = u >> 16 & 0x8000;
    float a = fabsf(x);
    if (!(a < 65520.0f)) bits = sign | (x != x ? 0x7e00 : 0x7c00);
    else if (a < 6.103515625e-05f) bits = sign | (unsigned)nearbyintf(a * 16777216.0f);
    else bits = sign | ((u & 0x7fffffff) - 0x38000000 + 0xfff + (u >> 13 & 1)) >> 13;
  }
  operator float() const {
    unsigned sign = (bits & 0x8000u) << 16, rest = bits & 0x7fff;
    if (rest >= 0x7c00) return __uint_as_float(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    if (rest >= 0x400) return __uint_as_float(sign | ((rest << 13) + 0x38000000));
    return copysignf(rest / 16777216.0f, __uint_as_float(sign));
  }
#else
  __device__ __forceinline__ explicit half(float x) {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  }
  __device__ __forceinline__ operator float() const {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
  }
#endif
};

// The type in which numbers are added up.
template <class T>
struct Wide {
  typedef float type;
};
template <>
struct Wide<double> {
  typedef double type;
};

// ---------------------------------------------------------------- functions for float and double
__device__ __forceinline__ float exp_(float x) { return expf(x); }
__device__ __forceinline__ double exp_(double x) { return exp(x); }
__device__ __forceinline__ float log_(float x) { return logf(x); }
__device__ __forceinline__ double log_(double x) { return log(x); }
__device__ __forceinline__ float rsqrt_(float x) { return rsqrtf(x); }
__device__ __forceinline__ double rsqrt_(double x) { return rsqrt(x); }
__device__ __forceinline__ float max_(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double max_(double a, double b) { return fmax(a, b); }
__device__ __forceinline__ float infinity_(float) { return __int_as_float(0x7f800000); }
__device__ __forceinline__ double infinity_(double) { return (double)__int_as_float(0x7f800000); }

// ---------------------------------------------------------------- 16 bytes at a time
template <class T>
struct Pack {
  static const int N = 16 / sizeof(T);  // numbers
};

template <class... P>
__device__ __forceinline__ bool aligned(const P*... places) {
  return (((unsigned long long)places | ...) & 15) == 0;
}

template <int BYTES>
struct Word {
  typedef unsigned char type;
};
template <>
struct Word<2> {
  typedef unsigned short type;
};
template <>
struct Word<4> {
  typedef unsigned type;
};
template <>
struct Word<8> {
  typedef uint2 type;
};
template <>
struct Word<16> {
  typedef uint4 type;
};

// Reads N numbers, 16 bytes at a time if there are so many; they begin at a multiple of that.
template <int N, class T, class A>
__device__ __forceinline__ void load(const T* from, A* to) {
  const int BYTES = N * sizeof(T), STEP = BYTES < 16 ? BYTES : 16;
  typedef typename Word<STEP>::type Step;
#pragma unroll
  for (int k = 0; k < BYTES / STEP; k++) {
    Step word = ((const Step*)from)[k];
    const T* numbers = (const T*)&word;
    const int EACH = STEP / sizeof(T);
#pragma unroll
    for (int i = 0; i < EACH; i++) to[k * EACH + i] = (A)numbers[i];
  }
}

// Stores a word whole: a plain copy of a structure may become a store for each of its members.
template <class Step>
__device__ __forceinline__ void put(Step* to, Step word) {
  *to = word;
}
#ifndef EMULATED
__device__ __forceinline__ void put(uint2* to, uint2 word) { __stwb(to, word); }
__device__ __forceinline__ void put(uint4* to, uint4 word) { __stwb(to, word); }
#endif

template <int N, class T, class A>
__device__ __forceinline__ void store(T* to, const A* from) {
  const int BYTES = N * sizeof(T), STEP = BYTES < 16 ? BYTES : 16;
  typedef typename Word<STEP>::type Step;
#pragma unroll
  for (int k = 0; k < BYTES / STEP; k++) {
    const int EACH = STEP / sizeof(T);
    Step word;
    T* numbers = (T*)&word;
#pragma unroll
    for (int i = 0; i < EACH; i++) numbers[i] = (T)from[k * EACH + i];
    put((Step*)to + k, word);
  }
}

template <int N>
struct Width {
  static const int value = N;
};

// Calls f(Width<N>(), i) for all n places, N at a time as far as they go, then one by one.
template <int N, class F>
__device__ __forceinline__ void each(long long n, bool wide, F f) {
  long long thread = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  long long threads = gridDim.x * (long long)blockDim.x, whole = wide ? n / N : 0;
  for (long long i = thread; i < whole; i += threads) f(Width<N>(), i * N);
  for (long long i = whole * N + thread; i < n; i += threads) f(Width<1>(), i);
}

// ---------------------------------------------------------------- sums over warps and blocks
template <class A>
__device__ __forceinline__ A warp_sum(A value) {
  for (int bits = 16; bits; bits >>= 1) value += __shfl_xor_sync(ALL, value, bits);
  return value;
}

template <class A>
__device__ __forceinline__ A warp_max(A value) {
  for (int bits = 16; bits; bits >>= 1) value = max_(value, __shfl_xor_sync(ALL, value, bits));
  return value;
}

// The sum over a block of whole warps, in every thread; `room` is shared memory for 32 numbers.
template <class A>
__device__ __forceinline__ A block_sum(A value, A* room) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  value = warp_sum(value);
  if (warps == 1) return value;
  __syncthreads();  // the last sum may still be read
  if (lane == 0) room[warp] = value;
  __syncthreads();
  return warp_sum(lane < warps ? room[lane] : (A)0);
}

template <class A>
__device__ __forceinline__ A block_max(A value, A* room) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  value = warp_max(value);
  if (warps == 1) return value;
  __syncthreads();
  if (lane == 0) room[warp] = value;
  __syncthreads();
  return warp_max(lane < warps ? room[lane] : -infinity_((A)0));
}

// Batch norm.  T: numbers, W: weights and biases; A: sums and statistics.
//
// A channel's numbers lie in planes, [image][channel][inner], or in a column, [row][channel].  Sums
// over a channel are made in two steps: blocks add up shares, which a second kernel adds in a fixed
// order.
#include "common.cuh"

typedef T_TYPE T;
typedef W_TYPE W;
typedef Wide<T>::type A;

// What is added up for a channel: x − k and its square, with some x for k, so that no digits are
// lost where the mean is far from 0; or g and g·(x − mean).
struct Moments {
  const T *x, *none;
  A shift;
  template <int N>
  __device__ __forceinline__ void add(long long i, A* sums) const {
    A a[N];
    load<N>(x + i, a);
#pragma unroll
    for (int j = 0; j < N; j++) {
      A d = a[j] - shift;
      sums[0] += d;
      sums[1] += d * d;
    }
  }
};

struct Slopes {
  const T *x, *g;
  A shift;
  template <int N>
  __device__ __forceinline__ void add(long long i, A* sums) const {
    A a[N], b[N];
    load<N>(x + i, a);
    load<N>(g + i, b);
#pragma unroll
    for (int j = 0; j < N; j++) {
      sums[0] += b[j];
      sums[1] += b[j] * (a[j] - shift);
    }
  }
};

// ---------------------------------------------------------------- sums of planes
// Block (c, s) adds up every gridDim.y-th part of channel c; shares are [sum][s][channel].
template <class F, int N>
__device__ __forceinline__ void plane_sums(F f, A* shares, long long images, long long channels,
                                           long long inner) {
  __shared__ A room[32];
  const unsigned packs = inner / N, all = images * packs, step = gridDim.y * blockDim.x;
  A sums[2] = {0, 0};
  for (unsigned j = blockIdx.y * blockDim.x + threadIdx.x; j < all; j += step)
    f.template add<N>(((j / packs) * channels + blockIdx.x) * inner + (long long)(j % packs) * N,
                      sums);
  for (int k = 0; k < 2; k++) {
    A sum = block_sum(sums[k], room);
    if (threadIdx.x == 0) shares[(k * gridDim.y + blockIdx.y) * channels + blockIdx.x] = sum;
  }
}

KERNEL(256) plane_moments(const T* x, A* shares, long long images, long long channels,
                          long long inner) {
  Moments f = {x, 0, (A)x[blockIdx.x * inner]};
  if (inner % Pack<T>::N == 0 && aligned(x))
    plane_sums<Moments, Pack<T>::N>(f, shares, images, channels, inner);
  else plane_sums<Moments, 1>(f, shares, images, channels, inner);
}

KERNEL(256) plane_slopes(const T* g, const T* x, const A* mean, A* shares, long long images,
                         long long channels, long long inner) {
  Slopes f = {x, g, mean[blockIdx.x]};
  if (inner % Pack<T>::N == 0 && aligned(x, g))
    plane_sums<Slopes, Pack<T>::N>(f, shares, images, channels, inner);
  else plane_sums<Slopes, 1>(f, shares, images, channels, inner);
}

// ---------------------------------------------------------------- sums of columns
// Block (p, s) of (packs, rows) threads adds up some rows of so many packs of N columns.
template <bool SLOPES, int N>
__device__ __forceinline__ void column_shares(const T* g, const T* x, const A* mean, A* shares,
                                              long long rows, long long channels) {
  DYNAMIC_SHARED(A, room);  // [sum and number][thread]
  const long long first = (blockIdx.x * (long long)blockDim.x + threadIdx.x) * N;
  const long long step = (long long)gridDim.y * blockDim.y;
  A sums[2][N], shift[N], a[N], b[N];
#pragma unroll
  for (int j = 0; j < N; j++) sums[0][j] = sums[1][j] = 0;
  if (first < channels) {
    if (SLOPES) load<N>(mean + first, shift);
    else load<N>(x + first, shift);
    for (long long row = blockIdx.y * (long long)blockDim.y + threadIdx.y; row < rows; row += step) {
      load<N>(x + row * channels + first, a);
      if (SLOPES) load<N>(g + row * channels + first, b);
#pragma unroll
      for (int j = 0; j < N; j++) {
        A d = a[j] - shift[j];
        sums[0][j] += SLOPES ? b[j] : d;
        sums[1][j] += SLOPES ? b[j] * d : d * d;
      }
    }
  }
  const int threads = blockDim.x * blockDim.y, me = threadIdx.y * blockDim.x + threadIdx.x;
#pragma unroll
  for (int j = 0; j < N; j++) {
    room[j * threads + me] = sums[0][j];
    room[(N + j) * threads + me] = sums[1][j];
  }
  __syncthreads();
  for (int i = me; i < 2 * N * (int)blockDim.x; i += threads) {
    const int which = i / blockDim.x, pack = i % blockDim.x;  // which: sum and number
    const long long channel = (blockIdx.x * (long long)blockDim.x + pack) * N + which % N;
    A sum = 0;
    for (int y = 0; y < blockDim.y; y++) sum += room[which * threads + y * blockDim.x + pack];
    if (channel < channels) shares[(which / N * gridDim.y + blockIdx.y) * channels + channel] = sum;
  }
}

// `packed`: the caller has made blocks for packs of 16 bytes, so the arrays allow it.
KERNEL(256) column_moments(const T* x, A* shares, long long rows, long long channels,
                           long long packed) {
  if (packed) column_shares<false, Pack<T>::N>((const T*)0, x, (A*)0, shares, rows, channels);
  else column_shares<false, 1>((const T*)0, x, (A*)0, shares, rows, channels);
}

KERNEL(256) column_slopes(const T* g, const T* x, const A* mean, A* shares, long long rows,
                          long long channels, long long packed) {
  if (packed) column_shares<true, Pack<T>::N>(g, x, mean, shares, rows, channels);
  else column_shares<true, 1>(g, x, mean, shares, rows, channels);
}

// ---------------------------------------------------------------- shares put together
// Both sums of channel blockIdx.x · 32 + threadIdx.y, in all threads of its warp; (32, 32) threads.
__device__ __forceinline__ void both_sums(const A* shares, long long parts, long long channels,
                                          A* sums) {
  __shared__ A room[32][33];
  const long long column = blockIdx.x * 32LL + threadIdx.x;
  for (int k = 0; k < 2; k++) {
    A sum = 0;
    if (column < channels)
      for (long long part = threadIdx.y; part < parts; part += 32)
        sum += shares[(k * parts + part) * channels + column];
    __syncthreads();
    room[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    sums[k] = warp_sum(room[threadIdx.x][threadIdx.y]);
  }
}

// Mean, variance and weight / standard deviation; `shift`: x, one number of a channel every `inner`.
KERNEL(1024) finish_moments(const A* shares, const T* shift, const W* weight, A* mean, A* var,
                            A* scale, long long parts, long long channels, long long inner,
                            double count, double eps) {
  A sums[2];
  both_sums(shares, parts, channels, sums);
  const long long c = blockIdx.x * 32LL + threadIdx.y;
  if (threadIdx.x || c >= channels) return;
  A middle = sums[0] / (A)count, v = sums[1] / (A)count - middle * middle;
  v = v < (A)0 ? (A)0 : v;
  mean[c] = (A)shift[c * inner] + middle;
  var[c] = v;
  scale[c] = rsqrt_(v + (A)eps) * (weight ? (A)weight[c] : (A)1);
}

// Gradients of weight and bias; and for dx = (g − part − (x − mean)·slope)·scale the three factors.
KERNEL(1024) finish_slopes(const A* shares, const A* var, const W* weight, W* d_weight, W* d_bias,
                           A* factors, long long parts, long long channels, double count,
                           double eps) {
  A sums[2];
  both_sums(shares, parts, channels, sums);
  const long long c = blockIdx.x * 32LL + threadIdx.y;
  if (threadIdx.x || c >= channels) return;
  A rstd = rsqrt_(var[c] + (A)eps);
  d_weight[c] = (W)(sums[1] * rstd);
  d_bias[c] = (W)sums[0];
  factors[c] = sums[0] / (A)count;
  factors[channels + c] = sums[1] * rstd * rstd / (A)count;
  factors[2 * channels + c] = rstd * (weight ? (A)weight[c] : (A)1);
}

// ---------------------------------------------------------------- element by element
// Calls f(j, channel) for the N numbers from place i on.
template <int N, class F>
__device__ __forceinline__ void with_channels(long long i, long long channels, long long inner,
                                              F f) {
  long long c, l;
  if (i < 0x7fffffff && inner < 0x7fffffff) {
    l = (unsigned)i % (unsigned)inner;
    c = (unsigned)i / (unsigned)inner % (unsigned)channels;
  } else {
    l = i % inner;
    c = i / inner % channels;
  }
#pragma unroll
  for (int j = 0; j < N; j++) {
    f(j, c);
    if (++l == inner) {
      l = 0;
      if (++c == channels) c = 0;
    }
  }
}

KERNEL(256) scale_channels(const T* x, const A* mean, const A* scale, const W* bias, T* y,
                           long long n, long long channels, long long inner) {
  each<Pack<T>::N>(n, aligned(x, y), [&](auto width, long long i) {
    const int N = decltype(width)::value;
    A a[N];
    load<N>(x + i, a);
    with_channels<N>(i, channels, inner, [&](int j, long long c) {
      a[j] = (a[j] - mean[c]) * scale[c] + (bias ? (A)bias[c] : (A)0);
    });
    store<N>(y + i, a);
  });
}

KERNEL(256) d_scale_channels(const T* g, const T* x, const A* mean, const A* factors, T* dx,
                             long long n, long long channels, long long inner) {
  each<Pack<T>::N>(n, aligned(g, x, dx), [&](auto width, long long i) {
    const int N = decltype(width)::value;
    A a[N], b[N];
    load<N>(g + i, a);
    load<N>(x + i, b);
    with_channels<N>(i, channels, inner, [&](int j, long long c) {
      a[j] = (a[j] - factors[c] - (b[j] - mean[c]) * factors[channels + c]) *
             factors[2 * channels + c];
    });
    store<N>(dx + i, a);
  });
}

// Running mean and variance moved towards those of a batch; `unbias`: n / (n − 1).
KERNEL(256) move_statistics(W* running_mean, W* running_var, const A* mean, const A* var,
                            long long channels, double momentum, double unbias) {
  each<1>(channels, false, [&](auto, long long c) {
    const A m = (A)momentum, keep = (A)(1 - momentum);
    if (running_mean) running_mean[c] = (W)((A)running_mean[c] * keep + m * mean[c]);
    if (running_var) running_var[c] = (W)((A)running_var[c] * keep + m * (var[c] * (A)unbias));
  });
}

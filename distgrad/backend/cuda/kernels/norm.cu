// Layer norm and RMS norm of rows.  T: numbers, W: weights and biases; A: sums and statistics.
//
// A row belongs to one block, or to one warp of a block of several (blockDim.y rows).  What is read
// again is still in the cache.
#include "common.cuh"

typedef T_TYPE T;
typedef W_TYPE W;
typedef Wide<T>::type A;

// The row's sum in all its threads; `room` is for rows of whole blocks.
__device__ __forceinline__ A row_sum(A value, A* room) {
  return blockDim.x == 32 ? warp_sum(value) : block_sum(value, room);
}

// ---------------------------------------------------------------- forward
template <bool CENTRED, int N>
__device__ __forceinline__ void norm_row(const T* x, const W* weight, const W* bias, T* y, A* mean,
                                         A* rstd, long long row, int width, A eps, A* room) {
  const T* from = x + row * width;
  T* to = y + row * width;
  const int first = threadIdx.x * N, step = blockDim.x * N;
  A middle = 0, squares = 0, a[N], w[N], b[N];
  if (CENTRED) {
    for (int i = first; i < width; i += step) {
      load<N>(from + i, a);
#pragma unroll
      for (int j = 0; j < N; j++) middle += a[j];
    }
    middle = row_sum(middle, room) / width;
  }
  for (int i = first; i < width; i += step) {
    load<N>(from + i, a);
#pragma unroll
    for (int j = 0; j < N; j++) squares += (a[j] - middle) * (a[j] - middle);
  }
  A scale = rsqrt_(row_sum(squares, room) / width + eps);
  if (threadIdx.x == 0) {
    if (CENTRED) mean[row] = middle;
    rstd[row] = scale;
  }
  for (int i = first; i < width; i += step) {
    load<N>(from + i, a);
    if (weight) load<N>(weight + i, w);
    if (bias) load<N>(bias + i, b);
#pragma unroll
    for (int j = 0; j < N; j++) {
      a[j] = (a[j] - middle) * scale;
      if (weight) a[j] *= w[j];
      if (bias) a[j] += b[j];
    }
    store<N>(to + i, a);
  }
}

template <bool CENTRED>
__device__ __forceinline__ void norm(const T* x, const W* weight, const W* bias, T* y, A* mean,
                                     A* rstd, long long rows, int width, A eps) {
  __shared__ A room[32];
  bool wide = width % Pack<T>::N == 0 && aligned(x, weight, bias, y);
  long long step = (long long)gridDim.x * blockDim.y;
  for (long long row = blockIdx.x * (long long)blockDim.y + threadIdx.y; row < rows; row += step) {
    if (wide) norm_row<CENTRED, Pack<T>::N>(x, weight, bias, y, mean, rstd, row, width, eps, room);
    else norm_row<CENTRED, 1>(x, weight, bias, y, mean, rstd, row, width, eps, room);
  }
}

KERNEL(512) layer_norm(const T* x, const W* weight, const W* bias, T* y, A* mean, A* rstd,
                       long long rows, long long width, double eps) {
  norm<true>(x, weight, bias, y, mean, rstd, rows, width, eps);
}

KERNEL(512) rms_norm(const T* x, const W* weight, T* y, A* rstd, long long rows, long long width,
                      double eps) {
  norm<false>(x, weight, (const W*)0, y, (A*)0, rstd, rows, width, eps);
}

// ---------------------------------------------------------------- backward
// dx = r·(g·w − mean(g·w) − u·mean(g·w·u)) with u = (x − mean)·r, and no mean(g·w) in RMS norm.
//
// A block takes every gridDim.x-th row and adds up g·u and g for each column in shared memory: a
// column belongs to one thread, in the order [number in its pack][pack], so that the threads of a
// warp meet different banks.
template <bool CENTRED, int N>
__device__ __forceinline__ void d_norm_row(const T* g, const T* x, const W* weight, A middle,
                                           A scale, T* dx, int width, A* d_weight, A* d_bias,
                                           A* room) {
  const int first = threadIdx.x * N, step = blockDim.x * N, packs = width / N;
  A sum = 0, product = 0, a[N], b[N], w[N];
  for (int i = first; i < width; i += step) {
    load<N>(g + i, a);
    load<N>(x + i, b);
    if (weight) load<N>(weight + i, w);
#pragma unroll
    for (int j = 0; j < N; j++) {
      A unit = (b[j] - middle) * scale;
      if (d_weight) d_weight[j * packs + i / N] += a[j] * unit;
      if (d_bias) d_bias[j * packs + i / N] += a[j];
      A part = weight ? a[j] * w[j] : a[j];
      sum += part;
      product += part * unit;
    }
  }
  if (!dx) return;
  sum = CENTRED ? block_sum(sum, room) / width : (A)0;
  product = block_sum(product, room) / width;
  for (int i = first; i < width; i += step) {
    load<N>(g + i, a);
    load<N>(x + i, b);
    if (weight) load<N>(weight + i, w);
#pragma unroll
    for (int j = 0; j < N; j++) {
      A unit = (b[j] - middle) * scale, part = weight ? a[j] * w[j] : a[j];
      a[j] = (part - sum - unit * product) * scale;
    }
    store<N>(dx + i, a);
  }
}

template <bool CENTRED, int N>
__device__ __forceinline__ void d_norm_rows(const T* g, const T* x, const W* weight, const A* mean,
                                            const A* rstd, T* dx, A* d_weight, A* d_bias,
                                            long long rows, int width) {
  __shared__ A room[32];
  DYNAMIC_SHARED(A, sums);
  A* weights = d_weight ? sums : (A*)0;
  A* biases = d_bias ? sums + (d_weight ? width : 0) : (A*)0;
  for (int i = threadIdx.x; i < width; i += blockDim.x) {
    if (weights) weights[i] = 0;
    if (biases) biases[i] = 0;
  }
  __syncthreads();
  for (long long row = blockIdx.x; row < rows; row += gridDim.x)
    d_norm_row<CENTRED, N>(g + row * width, x + row * width, weight, CENTRED ? mean[row] : (A)0,
                           rstd[row], dx ? dx + row * width : (T*)0, width, weights, biases, room);
  __syncthreads();
  const int packs = width / N;
  for (int i = threadIdx.x; i < width; i += blockDim.x) {
    long long to = blockIdx.x * (long long)width + i;
    if (d_weight) d_weight[to] = weights[i % N * packs + i / N];
    if (d_bias) d_bias[to] = biases[i % N * packs + i / N];
  }
}

// The sums of each block's rows go to d_weight and d_bias, (gridDim.x, width); 0: not asked for.
KERNEL(1024) d_layer_norm(const T* g, const T* x, const W* weight, const A* mean, const A* rstd,
                          T* dx, A* d_weight, A* d_bias, long long rows, long long width) {
  if (width % Pack<T>::N == 0 && aligned(g, x, weight, dx))
    d_norm_rows<true, Pack<T>::N>(g, x, weight, mean, rstd, dx, d_weight, d_bias, rows, width);
  else d_norm_rows<true, 1>(g, x, weight, mean, rstd, dx, d_weight, d_bias, rows, width);
}

KERNEL(1024) d_rms_norm(const T* g, const T* x, const W* weight, const A* rstd, T* dx, A* d_weight,
                        long long rows, long long width) {
  const A* mean = 0;
  A* d_bias = 0;
  if (width % Pack<T>::N == 0 && aligned(g, x, weight, dx))
    d_norm_rows<false, Pack<T>::N>(g, x, weight, mean, rstd, dx, d_weight, d_bias, rows, width);
  else d_norm_rows<false, 1>(g, x, weight, mean, rstd, dx, d_weight, d_bias, rows, width);
}

// The sums over the rows of one or two matrices (rows, width), always in the same order: 32 columns
// for a block of (32, 32) threads, a matrix for each blockIdx.y.
KERNEL(1024) column_sums(const A* first, W* first_sums, const A* second, W* second_sums,
                         long long rows, long long width) {
  __shared__ A room[32][33];
  const A* parts = blockIdx.y ? second : first;
  W* sums = blockIdx.y ? second_sums : first_sums;
  long long column = blockIdx.x * 32LL + threadIdx.x;
  A sum = 0;
  if (column < width)
    for (long long row = threadIdx.y; row < rows; row += 32) sum += parts[row * width + column];
  room[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  sum = warp_sum(room[threadIdx.x][threadIdx.y]);  // a warp adds up one column
  column = blockIdx.x * 32LL + threadIdx.y;
  if (threadIdx.x == 0 && column < width) sums[column] = (W)sum;
}

// Rows of a table by their numbers, and the gradient of the table.  T: numbers; A: sums.
//
// Backward sorts the numbers (radix sort, stable) and adds up what belongs to one row in the order
// of its places, so results are the same from run to run, without a table of wider numbers.
#include "common.cuh"
#include "fault.cuh"

typedef T_TYPE T;
typedef I_TYPE I;  // numbers of rows
typedef Wide<T>::type A;

// One block for a row of the result; a number that is no row gives nan, and is reported.
template <int N>
__device__ __forceinline__ void copy_row(const T* from, T* to, int width) {
  for (int i = threadIdx.x * N; i < width; i += blockDim.x * N) {
    A a[N];
    if (from) load<N>(from + i, a);
    else
      for (int j = 0; j < N; j++) a[j] = infinity_((A)0) - infinity_((A)0);
    store<N>(to + i, a);
  }
}

KERNEL(1024) embedding(const I* index, const T* table, T* out, long long* fault, long long count,
                       long long rows, long long width) {
  bool wide = width % Pack<T>::N == 0 && aligned(table, out);
  long long step = (long long)gridDim.x * blockDim.y;
  for (long long i = blockIdx.x * (long long)blockDim.y + threadIdx.y; i < count; i += step) {
    const long long row = index[i];
    const bool right = row >= 0 && row < rows;
    if (!right && threadIdx.x == 0) report(fault, NO_ROW, row, rows);
    const T* from = right ? table + row * width : (const T*)0;
    if (wide) copy_row<Pack<T>::N>(from, out + i * width, (int)width);
    else copy_row<1>(from, out + i * width, (int)width);
  }
}

// ---------------------------------------------------------------- a stable sort by 8 bits
const int TILE = 1024;  // numbers of a block of 256 threads, which takes 256 at a time

// How often each digit occurs in the tile of a block: counts[digit][tile].  The first time keys are
// made of row numbers, those that are none last, and places count from 0.
KERNEL(256) count_digits(const I* index, unsigned* keys, unsigned* places, unsigned* counts,
                         long long n, long long rows, long long bit, long long make) {
  __shared__ unsigned found[256];
  found[threadIdx.x] = 0;
  __syncthreads();
  for (int k = 0; k < TILE; k += 256) {
    long long i = blockIdx.x * (long long)TILE + k + threadIdx.x;
    if (i >= n) break;
    if (make) {
      long long row = index[i];
      keys[i] = row >= 0 && row < rows ? (unsigned)row : (unsigned)rows;
      places[i] = (unsigned)i;
    }
    atomicAdd(&found[keys[i] >> bit & 255], 1u);
  }
  __syncthreads();
  counts[threadIdx.x * (long long)gridDim.x + blockIdx.x] = found[threadIdx.x];
}

// Each count becomes the sum of those before it.  One block.
KERNEL(1024) add_before(unsigned* counts, long long n) {
  __shared__ unsigned warps[32];
  unsigned before = 0;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  for (long long start = 0; start < n; start += 1024) {
    long long i = start + threadIdx.x;
    unsigned mine = i < n ? counts[i] : 0, sum = mine;
    for (int by = 1; by < 32; by <<= 1) {
      unsigned other = __shfl_up_sync(ALL, sum, by);
      if (lane >= by) sum += other;
    }
    if (lane == 31) warps[warp] = sum;
    __syncthreads();
    unsigned below = 0, all = 0;
    for (int w = 0; w < 32; w++) {
      if (w < warp) below += warps[w];
      all += warps[w];
    }
    if (i < n) counts[i] = before + below + sum - mine;
    before += all;
    __syncthreads();
  }
}

// Puts keys and places in the order of a digit; equal digits keep their order.
KERNEL(256) sort_by_digit(const unsigned* keys, const unsigned* places, const unsigned* counts,
                          unsigned* new_keys, unsigned* new_places, long long n, long long bit) {
  __shared__ unsigned next[256], in_warp[8][256];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  next[threadIdx.x] = counts[threadIdx.x * (long long)gridDim.x + blockIdx.x];
  for (int k = 0; k < TILE; k += 256) {
    for (int w = 0; w < 8; w++) in_warp[w][threadIdx.x] = 0;
    __syncthreads();
    long long i = blockIdx.x * (long long)TILE + k + threadIdx.x;
    const bool mine = i < n;
    const unsigned key = mine ? keys[i] : 0, digit = key >> bit & 255;
    unsigned same = __ballot_sync(ALL, mine);  // lanes with this digit
    for (int b = 0; b < 8; b++) {
      unsigned set = __ballot_sync(ALL, digit >> b & 1);
      same &= digit >> b & 1 ? set : ~set;
    }
    const unsigned before = __popc(same & ((1u << lane) - 1));
    if (mine && before == 0) in_warp[warp][digit] = __popc(same);
    __syncthreads();
    if (mine) {
      unsigned to = next[digit] + before;
      for (int w = 0; w < warp; w++) to += in_warp[w][digit];
      new_keys[to] = key;
      new_places[to] = places[i];
    }
    __syncthreads();
    for (int w = 0; w < 8; w++) next[threadIdx.x] += in_warp[w][threadIdx.x];
    __syncthreads();
  }
}

// ---------------------------------------------------------------- sums of runs of one number
// A run is cut at every 64th place of the sorted numbers; block j adds up the piece that begins at
// place j, if one does.  A run in one piece gives its row.  Else the pieces go to `parts`, (n/64,
// 2, width): one that begins a run to [chunk][1], one that goes on with it to [chunk][0].
const int CHUNK = 64;

// The first place after the run at place j.
__device__ __forceinline__ long long run_end(const unsigned* keys, long long j, long long n) {
  long long low = j, high = n;  // keys[low] is in the run, keys[high] is not
  while (high - low > 1) {
    long long middle = (low + high) / 2;
    if (keys[middle] == keys[j]) low = middle;
    else high = middle;
  }
  return high;
}

template <int N>
__device__ __forceinline__ void add_piece(const T* g, const unsigned* keys, const unsigned* places,
                                          T* out, A* parts, long long j, long long n, int width,
                                          bool by_count) {
  const unsigned key = keys[j];
  const bool begins = j == 0 || keys[j - 1] != key;
  const long long border = (j / CHUNK + 1) * CHUNK;
  long long end = j + 1;
  while (end < n && end < border && keys[end] == key) end++;
  const bool whole = begins && (end == n || keys[end] != key);
  A* part = parts + (j / CHUNK * 2 + begins) * width;
  for (int i = threadIdx.x * N; i < width; i += blockDim.x * N) {
    A sum[N], a[N];
#pragma unroll
    for (int k = 0; k < N; k++) sum[k] = 0;
    for (long long at = j; at < end; at++) {
      load<N>(g + (long long)places[at] * width + i, a);
#pragma unroll
      for (int k = 0; k < N; k++) sum[k] += a[k];
    }
    if (whole) {
      if (by_count)
        for (int k = 0; k < N; k++) sum[k] /= (A)(end - j);
      store<N>(out + key * (long long)width + i, sum);
    } else {
      for (int k = 0; k < N; k++) part[i + k] = sum[k];
    }
  }
}

KERNEL(1024) add_pieces(const T* g, const unsigned* keys, const unsigned* places, T* out, A* parts,
                        long long n, long long rows, long long width, long long padding,
                        long long by_count) {
  for (long long j = blockIdx.x; j < n; j += gridDim.x) {
    const unsigned key = keys[j];
    if (key >= rows || key == padding) continue;  // they get nothing
    if (j % CHUNK && keys[j - 1] == key) continue;
    if (width % Pack<T>::N == 0 && aligned(g, out))
      add_piece<Pack<T>::N>(g, keys, places, out, parts, j, n, (int)width, by_count);
    else add_piece<1>(g, keys, places, out, parts, j, n, (int)width, by_count);
  }
}

// The rows of runs in several pieces: block c takes the one that goes on after chunk c, if it begins
// in that chunk.
KERNEL(256) add_parts(const unsigned* keys, const A* parts, T* out, long long n, long long rows,
                      long long width, long long padding, long long by_count) {
  const long long c = blockIdx.x, border = (c + 1) * CHUNK;
  if (border >= n) return;
  const unsigned key = keys[border];
  if (keys[border - 1] != key || key >= rows || key == padding) return;
  if (c > 0 && keys[c * CHUNK - 1] == key) return;  // it begins in an earlier chunk
  long long begin = border - 1;
  while (begin > c * CHUNK && keys[begin - 1] == key) begin--;
  const long long end = run_end(keys, border, n);
  for (long long i = threadIdx.x; i < width; i += blockDim.x) {
    A sum = parts[(c * 2 + 1) * width + i];
    for (long long k = c + 1; k * CHUNK < end; k++) sum += parts[k * 2 * width + i];
    if (by_count) sum /= (A)(end - begin);
    out[key * width + i] = (T)sum;
  }
}

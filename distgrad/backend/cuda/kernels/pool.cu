// Pooling over up to three dimensions.  T: numbers; A: sums.
//
// Images are [outer][depth][height][width][inner]: inner is 1, or the channels where they come last.
// One thread makes one number of the result, of which there are less than 2^31.  Backward gathers: an element looks into the windows
// that hold it, so nothing is added in an order of chance.
#include "common.cuh"

typedef T_TYPE T;
typedef Wide<T>::type A;

// One dimension: sizes of the image and of the result, and the windows.
struct Axis {
  long long size, windows, kernel, stride, padding, dilation;

  // The first window that holds place p, and the first after the last one.
  __device__ __forceinline__ int first(int p) const {
    int below = p + (int)padding - (int)(dilation * (kernel - 1));
    return below <= 0 ? 0 : (below + (int)stride - 1) / (int)stride;
  }
  __device__ __forceinline__ int end(int p) const {
    int last = (p + (int)padding) / (int)stride + 1;
    return last < windows ? last : (int)windows;
  }
  __device__ __forceinline__ int start(int window) const {
    return window * (int)stride - (int)padding;
  }
  // How many numbers a window counts.
  __device__ __forceinline__ int counted(int window, bool with_padding) const {
    int low = start(window), high = low + (int)kernel;
    int most = (int)(with_padding ? size + padding : size);
    high = high < most ? high : most;
    return high - (with_padding || low > 0 ? low : 0);
  }
};

#define AXIS(a)                                                                       \
  long long a##_size, long long a##_windows, long long a##_kernel, long long a##_stride, \
      long long a##_padding, long long a##_dilation
#define AXES AXIS(d), AXIS(h), AXIS(w)
#define AXIS_OF(a) \
  { a##_size, a##_windows, a##_kernel, a##_stride, a##_padding, a##_dilation }

struct Place {
  unsigned outer;
  int d, h, w, inner;
};

__device__ __forceinline__ Place place_of(unsigned i, unsigned depth, unsigned height,
                                          unsigned width, unsigned inner) {
  Place p;
  p.inner = i % inner, i /= inner;
  p.w = i % width, i /= width;
  p.h = i % height, i /= height;
  p.d = i % depth, p.outer = i / depth;
  return p;
}

// ---------------------------------------------------------------- maxima
// A nan is above everything.  Places are numbered within an image's dimensions.
KERNEL(256) max_pool(const T* x, T* y, long long* places, long long n, long long inner, AXES) {
  const Axis depth = AXIS_OF(d), height = AXIS_OF(h), width = AXIS_OF(w);
  each<1>(n, false, [&](auto, long long i) {
    Place p = place_of(i, d_windows, h_windows, w_windows, inner);
    const T* image = x + p.outer * d_size * h_size * w_size * inner + p.inner;
    A best = -infinity_((A)0);
    long long where = -1;
    for (int kd = 0; kd < d_kernel; kd++) {
      int z = depth.start(p.d) + kd * (int)d_dilation;
      if (z < 0 || z >= d_size) continue;
      for (int kh = 0; kh < h_kernel; kh++) {
        int y = height.start(p.h) + kh * (int)h_dilation;
        if (y < 0 || y >= h_size) continue;
        for (int kw = 0; kw < w_kernel; kw++) {
          int x = width.start(p.w) + kw * (int)w_dilation;
          if (x < 0 || x >= w_size) continue;
          long long at = (z * h_size + y) * w_size + x;
          A value = (A)image[at * inner];
          if (where < 0 || value > best || value != value) best = value, where = at;
        }
      }
    }
    y[i] = (T)best;
    places[i] = where;
  });
}

KERNEL(256) d_max_pool(const T* g, const long long* places, T* dx, long long n, long long inner,
                       AXES) {
  const Axis depth = AXIS_OF(d), height = AXIS_OF(h), width = AXIS_OF(w);
  each<1>(n, false, [&](auto, long long i) {
    Place p = place_of(i, d_size, h_size, w_size, inner);
    long long me = (p.d * h_size + p.h) * w_size + p.w;
    long long image = p.outer * d_windows * h_windows * w_windows * inner + p.inner;
    A sum = 0;
    for (int z = depth.first(p.d); z < depth.end(p.d); z++)
      for (int y = height.first(p.h); y < height.end(p.h); y++)
        for (int x = width.first(p.w); x < width.end(p.w); x++) {
          long long at = image + ((z * h_windows + y) * w_windows + x) * inner;
          if (places[at] == me) sum += (A)g[at];
        }
    dx[i] = (T)sum;
  });
}

// ---------------------------------------------------------------- averages
// `divisor`: 0, or what every window is divided by.
KERNEL(256) avg_pool(const T* x, T* y, long long n, long long inner, long long with_padding,
                     double divisor, AXES) {
  const Axis depth = AXIS_OF(d), height = AXIS_OF(h), width = AXIS_OF(w);
  each<1>(n, false, [&](auto, long long i) {
    Place p = place_of(i, d_windows, h_windows, w_windows, inner);
    const T* image = x + p.outer * d_size * h_size * w_size * inner + p.inner;
    A sum = 0;
    for (int z = depth.start(p.d); z < depth.start(p.d) + d_kernel; z++) {
      if (z < 0 || z >= d_size) continue;
      for (int y = height.start(p.h); y < height.start(p.h) + h_kernel; y++) {
        if (y < 0 || y >= h_size) continue;
        for (int x = width.start(p.w); x < width.start(p.w) + w_kernel; x++)
          if (x >= 0 && x < w_size) sum += (A)image[((z * h_size + y) * w_size + x) * inner];
      }
    }
    A count = depth.counted(p.d, with_padding) * (A)height.counted(p.h, with_padding) *
              width.counted(p.w, with_padding);
    y[i] = (T)(sum / (divisor != 0 ? (A)divisor : count));
  });
}

KERNEL(256) avg_pool_input(const T* g, T* dx, long long n, long long inner, long long with_padding,
                           double divisor, AXES) {
  const Axis depth = AXIS_OF(d), height = AXIS_OF(h), width = AXIS_OF(w);
  each<1>(n, false, [&](auto, long long i) {
    Place p = place_of(i, d_size, h_size, w_size, inner);
    const T* image = g + p.outer * d_windows * h_windows * w_windows * inner + p.inner;
    A sum = 0;
    for (int z = depth.first(p.d); z < depth.end(p.d); z++)
      for (int y = height.first(p.h); y < height.end(p.h); y++)
        for (int x = width.first(p.w); x < width.end(p.w); x++) {
          A count = depth.counted(z, with_padding) * (A)height.counted(y, with_padding) *
                    width.counted(x, with_padding);
          A value = (A)image[((z * h_windows + y) * w_windows + x) * inner];
          sum += value / (divisor != 0 ? (A)divisor : count);
        }
    dx[i] = (T)sum;
  });
}

// Arithmetic with the host's bits: no product is fused into a sum, and numbers next to 0 are kept.
//
// CuPy compiles with -ftz=true, by which __fadd_rn, a sign or a comparison takes float32 below 2^-126
// for 0; an instruction that is written out does not.
#ifdef EMULATED
#define EXACT(name, instruction, host) \
  inline float name(float a, float b) { return host; }
#define EXACT_OF_ONE(name, instruction, host) \
  inline float name(float a) { return host; }
#else
#define EXACT(name, instruction, host)                              \
  __device__ __forceinline__ float name(float a, float b) {         \
    float c;                                                        \
    asm(instruction ".f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b)); \
    return c;                                                       \
  }
#define EXACT_OF_ONE(name, instruction, host)           \
  __device__ __forceinline__ float name(float a) {      \
    float b;                                            \
    asm(instruction ".f32 %0, %1;" : "=f"(b) : "f"(a)); \
    return b;                                           \
  }
#endif
EXACT(add, "add.rn", a + b)
EXACT(minus, "sub.rn", a - b)
EXACT(mul, "mul.rn", a * b)
EXACT(over, "div.rn", a / b)
EXACT(most, "max", a >= b ? a : b)  // of numbers; nan is told apart before
EXACT_OF_ONE(root, "sqrt.rn", sqrtf(a))
EXACT_OF_ONE(size, "abs", fabsf(a))
EXACT_OF_ONE(negative, "neg", -a)

__device__ __forceinline__ double add(double a, double b) { return __dadd_rn(a, b); }
__device__ __forceinline__ double minus(double a, double b) { return __dadd_rn(a, -b); }
__device__ __forceinline__ double mul(double a, double b) { return __dmul_rn(a, b); }
__device__ __forceinline__ double over(double a, double b) { return __ddiv_rn(a, b); }
__device__ __forceinline__ double most(double a, double b) { return a >= b ? a : b; }
__device__ __forceinline__ double root(double a) { return __dsqrt_rn(a); }
__device__ __forceinline__ double size(double a) { return fabs(a); }
__device__ __forceinline__ double negative(double a) { return -a; }

"""What every kernel in a C-like language begins with: functions, written in OpenCL C's words.

Another language defines the words that it lacks in place of WORDS. Kernels may follow each other in
one source, of which only the first beginning counts.

pack and unpack take a float type's exponent and mantissa widths, which are constants wherever they
are called. 4 exponent bits mean e4m3, which has no infinity. odd_* round to float32 so that an
inexact result's last bit is one (Boldo and Melquiond, 2008): rounding that again to a narrow float
is rounding once. divide_* round down and give zero for a zero divisor; nothing traps or overflows.
"""

WORDS = """\
#ifndef MULADD
#define MULADD
#pragma OPENCL FP_CONTRACT OFF
#define GROUP_OF(n) __attribute__((reqd_work_group_size(n, 1, 1)))
#define MEET barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE)
#ifdef DECLARE_BUILTINS  // where the driver's own header is left out, as it is long
#define OF __attribute__((overloadable, const))
#define OF_REALS(t) t OF convert_##t##_sat(float); t OF convert_##t##_sat(double);
size_t OF get_global_id(uint); size_t OF get_local_id(uint); size_t OF get_group_id(uint);
size_t OF get_global_size(uint); size_t OF get_num_groups(uint);
void __attribute__((overloadable, convergent)) barrier(cl_mem_fence_flags);
float OF sqrt(float); float OF fma(float, float, float); float OF ldexp(float, int);
double OF sqrt(double); double OF fma(double, double, double); double OF fabs(double);
ulong OF clz(ulong); OF_REALS(char) OF_REALS(short) OF_REALS(int) OF_REALS(long)
OF_REALS(uchar) OF_REALS(ushort) OF_REALS(uint) OF_REALS(ulong)
#endif
"""

FUNCTIONS = """\
#ifdef FP_FAST_FMAF
#define multiply_add fma
#else  // a call of a function that emulates it, on some CPUs; the fast profile need not have it
#define multiply_add(a, b, c) ((a) * (b) + (c))
#endif
inline uint pack(float x, int exponent, int mantissa) {
  const uint bits = as_uint(x), magnitude = bits & 0x7fffffffu, drop = 23 - mantissa;
  const uint bias = (1u << (exponent - 1)) - 1, sign = (bits >> 31) << (exponent + mantissa);
  const uint top = exponent == 4 ? 0x7fu : ((1u << exponent) - 1) << mantissa;
  const uint nan = exponent == 4 ? 0x7fu : exponent == 5 && mantissa == 2 ? 0x7fu
                                         : top | 1u << (mantissa - 1);
  uint code = (magnitude + (1u << (drop - 1)) - 1 + ((magnitude >> drop) & 1)) >> drop;
  if (exponent < 8) {
    const float magic = as_float((127 + 1 - bias - mantissa + 23) << 23);
    code = magnitude < (128 - bias) << 23 ? as_uint(as_float(magnitude) + magic) - as_uint(magic)
                                          : code - ((127 - bias) << mantissa);
    code = code > top ? top : code;
  }
  return sign | (x != x ? nan : code);
}
inline float unpack(uint code, int exponent, int mantissa) {
  const uint sign = (code >> (exponent + mantissa)) << 31;
  const uint magnitude = code & ((1u << (exponent + mantissa)) - 1);
  if (exponent == 8) return as_float(sign | magnitude << 16);
  const uint top = exponent == 4 ? 0x7fu : ((1u << exponent) - 1) << mantissa;
  const float scale = as_float((127 + 127 - ((1u << (exponent - 1)) - 1)) << 23);
  const uint bits = as_uint(as_float(magnitude << (23 - mantissa)) * scale);
  const uint wild = exponent == 4 || magnitude > top ? 0x7fc00000u : 0x7f800000u;
  return as_float(sign | (magnitude >= top ? wild : bits));
}
inline float odd_ulong(ulong x) {
  const int over = 40 - (int)clz(x);
  if (over <= 0) return (float)x;
  const ulong top = x >> over;
  return ldexp((float)(top | (top << over != x)), over);
}
inline float odd_long(long x) { return x < 0 ? -odd_ulong(-(ulong)x) : odd_ulong((ulong)x); }
#ifdef cl_khr_fp64
inline float odd_double(double x) {
  const float near = (float)x;
  if ((double)near == x || x != x) return near;
  return as_float((as_uint(near) - (fabs((double)near) > fabs(x))) | 1u);
}
#endif
inline ulong divide_u(ulong x, ulong y) { return y ? x / y : 0; }
inline long divide_s(long x, long y) {
  if (y == 0) return 0;
  if (y == -1) return (long)(-(ulong)x);
  const long q = x / y, rest = x - q * y;
  return q - (rest && (rest ^ y) < 0);
}
inline ulong modulo_u(ulong x, ulong y) { return x - divide_u(x, y) * y; }
inline long modulo_s(long x, long y) { return x - (ulong)divide_s(x, y) * (ulong)y; }
#endif
"""

OPENCL = WORDS + FUNCTIONS

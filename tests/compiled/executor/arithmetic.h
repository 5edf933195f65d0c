// Types of PTX, and what its instructions compute beyond C++'s own operators.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

typedef uint8_t u8; typedef uint16_t u16; typedef int16_t s16; typedef uint32_t u32; typedef int32_t s32;
typedef uint64_t u64; typedef int64_t s64; typedef float f32; typedef double f64;

// A lane-by-lane instruction over a warp's registers f: operands lie at o, m are the lanes that take part.
typedef void (*Operation)(u8* f, const s32* o, u32 m);

static const int* g_perturb;  // a seed by which approximate instructions err, or 0

static inline u32 bits(f32 x) { u32 r; memcpy(&r, &x, 4); return r; }
static inline f32 from_bits(u32 x) { f32 r; memcpy(&r, &x, 4); return r; }
static inline f32 flush(f32 x) {
  const u32 b = bits(x);
  return (b & 0x7f800000u) ? x : from_bits(b & 0x80000000u);
}
static inline f32 least(f32 a, f32 b) {
  if (a != a) return b;
  if (b != b) return a;
  return a < b ? a : b < a ? b : from_bits(bits(a) | bits(b));
}
static inline f32 most(f32 a, f32 b) {
  if (a != a) return b;
  if (b != b) return a;
  return a > b ? a : b > a ? b : from_bits(bits(a) & bits(b));
}
static inline f32 least_or_nan(f32 a, f32 b) { return a != a || b != b ? from_bits(0x7fffffffu) : least(a, b); }
static inline f32 most_or_nan(f32 a, f32 b) { return a != a || b != b ? from_bits(0x7fffffffu) : most(a, b); }
static inline f32 approximate(f32 x, int ulps) {
  if (!*g_perturb) return x;
  const u32 b = bits(x), e = b & 0x7f800000u;
  if (!e || e == 0x7f800000u || !(b & 0x7fffffu)) return x;  // 0, infinite, NaN, powers of two
  const u32 h = (b * 2654435761u + (u32)*g_perturb * 40503u) >> 16;
  return from_bits(b + (u32)((int)(h % (2 * ulps + 1)) - ulps));
}
static inline f32 approximate_log2(f32 x) { return approximate((f32)log2((double)flush(x)), 2); }

// Division by 0 is whatever hardware likes; here it does not stop the process.
template <class T> static inline T safe_div(T a, T b) {
  if (!b) return (T)~(T)0;
  if ((T)-1 < (T)0 && b == (T)-1) return (T)(0 - (u64)a);
  return a / b;
}
template <class T> static inline T safe_rem(T a, T b) { return b ? (T)(a - (T)(safe_div<T>(a, b) * b)) : a; }

static inline u32 bfe_u(u32 a, u32 b, u32 c) {
  b &= 255; c &= 255;
  if (!c || b > 31) return 0;
  return c > 31 ? a >> b : (a >> b) & ((1u << c) - 1);
}
static inline s32 bfe_s(s32 a, u32 b, u32 c) {
  b &= 255; c &= 255;
  if (!c) return 0;
  const u32 last = b + c - 1 > 31 ? 31 : b + c - 1;
  const u32 sign = (u32)a >> last & 1;
  u32 r = bfe_u((u32)a, b, c);
  const u32 have = b > 31 ? 0 : last - b + 1;
  if (sign && have < 32) r |= ~0u << have;
  return (s32)r;
}
static inline u32 bfi(u32 a, u32 b, u32 c, u32 d) {
  c &= 255; d &= 255;
  if (!d || c > 31) return b;
  const u32 mask = (d > 31 ? ~0u : (1u << d) - 1) << c;
  return (b & ~mask) | (a << c & mask);
}
static inline u32 prmt(u32 a, u32 b, u32 c) {
  const u64 both = (u64)b << 32 | a;
  u32 r = 0;
  for (int i = 0; i < 4; ++i) {
    const u32 s = c >> 4 * i & 15;
    u32 byte = (u32)(both >> 8 * (s & 7)) & 255;
    if (s & 8) byte = byte & 128 ? 255 : 0;
    r |= byte << 8 * i;
  }
  return r;
}
static inline u32 lop3(u32 a, u32 b, u32 c, u32 table) {
  u32 r = 0;
  for (int i = 0; i < 8; ++i)
    if (table >> i & 1) r |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  return r;
}

static inline u16 to_bf16(f32 x) {
  if (x != x) return 0x7fff;
  const u32 b = bits(x);
  return (u16)((b + 0x7fffu + (b >> 16 & 1)) >> 16);
}
static inline f32 from_bf16(u16 x) { return from_bits((u32)x << 16); }
static inline u16 to_f16(f32 x) {
  if (x != x) return 0x7fff;
  const _Float16 h = (_Float16)x;
  u16 r; memcpy(&r, &h, 2); return r;
}
static inline f32 from_f16(u16 x) { _Float16 h; memcpy(&h, &x, 2); return (f32)h; }
static inline s32 to_s32(f32 x) {
  if (x != x) return 0;
  return x >= 2147483648.0f ? INT32_MAX : x <= -2147483648.0f ? INT32_MIN : (s32)x;
}
static inline s64 to_s64(f32 x) {
  if (x != x) return INT64_MIN;
  return x >= 9223372036854775808.0f ? INT64_MAX : x <= -9223372036854775808.0f ? INT64_MIN : (s64)x;
}

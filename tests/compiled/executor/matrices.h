// Matrix products of a warp: mma, and a warp's quarter of wgmma.
#pragma once
#include "arithmetic.h"

enum { BF16, F16, TF32 };  // of the operands; sums are float32

static inline f64 element(u32 word, int half, int type) {
  if (type == TF32) return from_bits(word & ~0x1fffu);  // hardware cuts off what tf32 lacks
  const u16 h = (u16)(word >> 16 * half);
  return type == F16 ? from_f16(h) : from_bf16(h);
}

// 16 rows of A from registers, as mma and wgmma hold them.
static inline void rows_of(f64 (&a)[16][16], const u32* const* registers, int count, int type) {
  for (int r = 0; r < count; ++r)
    for (int lane = 0; lane < 32; ++lane) {
      const u32 word = registers[r][lane];
      const int row = (lane >> 2) + 8 * (r & 1), t = lane & 3;
      if (type == TF32) { a[row][t + 4 * (r >> 1)] = element(word, 0, type); continue; }
      for (int e = 0; e < 2; ++e) a[row][2 * t + e + 8 * (r >> 1)] = element(word, e, type);
    }
}

static inline void columns_of(f64 (&b)[16][8], const u32* const* registers, int count, int type) {
  for (int r = 0; r < count; ++r)
    for (int lane = 0; lane < 32; ++lane) {
      const u32 word = registers[r][lane];
      const int column = lane >> 2, t = lane & 3;
      if (type == TF32) { b[t + 4 * r][column] = element(word, 0, type); continue; }
      for (int e = 0; e < 2; ++e) b[2 * t + e + 8 * r][column] = element(word, e, type);
    }
}

// out = a b + before for 16 rows and 8 columns: summed exactly, rounded once; `cut`: cut off instead.
static inline void multiply(const f64 (&a)[16][16], const f64 (&b)[16][8], int depth, f32* const* before,
                            f32* const* out, bool cut) {
  f64 d[16][8];
  for (int row = 0; row < 16; ++row) {
    for (int n = 0; n < 8; ++n) d[row][n] = 0;
    for (int k = 0; k < depth; ++k)
      for (int n = 0; n < 8; ++n) d[row][n] += a[row][k] * b[k][n];
  }
  for (int r = 0; r < 4; ++r)
    for (int lane = 0; lane < 32; ++lane) {
      f64 sum = d[(lane >> 2) + 8 * (r >> 1)][2 * (lane & 3) + (r & 1)];
      if (before) sum += (f64)before[r][lane];
      f32 rounded = (f32)sum;
      if (cut && std::fabs((f64)rounded) > std::fabs(sum) && std::isfinite(rounded))
        rounded = from_bits(bits(rounded) - 1);
      out[r][lane] = rounded;
    }
}

// A matrix in shared memory as wgmma's descriptors tell of it. Its rows are of A, or the columns of B.
struct Descriptor {
  u32 start, leading, stride, swizzle;
  bool across;  // rows lie along the bytes, not the depth
  explicit Descriptor(u64 word, bool transposed)
      : start((u32)(word & 0x3fff) << 4), leading((u32)(word >> 16 & 0x3fff) << 4),
        stride((u32)(word >> 32 & 0x3fff) << 4), across(transposed) {
    const u32 mode = (u32)(word >> 62);
    swizzle = mode == 1 ? 128 : mode == 2 ? 64 : mode == 3 ? 32 : 0;
  }
  // The address of (row, k), in elements of `size` bytes.
  u32 at(u32 row, u32 k, u32 size) const {
    u32 address;
    if (!swizzle) {  // cores of 8 rows by 16 bytes, one after another
      const u32 each = 16 / size;
      address = across ? start + row / each * stride + row % each * size + k / 8 * leading + k % 8 * 16
                       : start + row / 8 * stride + row % 8 * 16 + k / each * leading + k % each * size;
      return address;
    }
    const u32 wide = swizzle / size;
    address = across ? start + row / wide * leading + row % wide * size + k / 8 * stride + k % 8 * swizzle
                     : start + row / 8 * stride + row % 8 * swizzle + k * size;
    return address ^ (address >> 3 & (swizzle / 16 - 1) << 4);
  }
};

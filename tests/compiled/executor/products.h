// Matrix products of a program's warps: mma at once, wgmma while the warps go on.
#pragma once
#include <algorithm>

#include "matrices.h"
#include "transfers.h"

struct Products : Transfers {
  explicit Products(Launch& launch) : Transfers(launch) {}

  // d (4), a, b, c (4): q = type, depth.
  void mma(const s32* o, const s32* q, u8* f) {
    const int type = q[0], depth = q[1], words = depth * (type == TF32 ? 4 : 2) / 8;
    u32* registers[14];
    for (int r = 0; r < 8 + words + words / 2; ++r) registers[r] = (u32*)(f + o[r]);
    f64 a[16][16], b[16][8];
    rows_of(a, registers + 4, words, type);
    columns_of(b, registers + 4 + words, words / 2, type);
    f32 out[4][32];
    f32* into[4] = {out[0], out[1], out[2], out[3]};
    multiply(a, b, depth, (f32**)(registers + 4 + words + words / 2), into, run.perturb);
    for (int r = 0; r < 4; ++r) memcpy(registers[r], out[r], sizeof out[r]);
  }

  // Asynchronous products of warp groups. q = type, columns, a in registers, a and b transposed.

  template <class F> void operand_rows(int w, s32 pc, u64 word, bool across, int first, int rows, int type, F use) {
    const Descriptor matrix(word, across);
    const u32 size = type == TF32 ? 4 : 2, each = 16 / size, depth = 32 / size;
    for (int i = 0; i < rows; ++i)
      for (u32 k = 0; k < depth; ++k) {
        // Bytes are looked at 16 at a time: once for each run of them.
        const u32 address = matrix.at(first + i, k, size);
        const bool leads = across ? !(address % 16) : !(k % each);
        if (leads) {
          use(-1, -1, 0u, address);
          if (!in_shared(address & ~15u, 16, nullptr, Access{pc, w, 0, false, true})) continue;
        }
        u32 value = 0;
        if ((u64)address + size <= (u64)run.shared_bytes) memcpy(&value, shared.data() + address, size);
        use(i, (int)k, value, address);
      }
  }

  void mark_operands(int w, const Product& product, int change) {
    const s32* q = at(product.pc) + MODIFIER;
    const int size = q[0] == TF32 ? 4 : 2;
    auto mark = [&](u64 word, bool across, int first, int rows) {
      const Descriptor matrix(word, across);
      for (int r = 0; r < rows; ++r)
        for (int k = 0; k < 32 / size; ++k) {
          const u32 address = matrix.at(first + r, k, size);
          if ((u64)address + size <= (u64)run.shared_bytes)
            each_shadow(address, std::max<u32>(size, run.small_shared), [&](Shadow& s) {
              s.pending_reads += change;
              if (change > 0) s.read_pc = product.pc;
            });
        }
    };
    if (!q[2]) mark(product.a, q[3], 16 * (w & 3), 16);
    mark(product.b, q[4], 0, q[1]);
  }

  void group_product(int w, const Product& product) {
    const s32 pc = product.pc, *i = at(pc), *o = run.operands + i[FIRST_OPERAND], *q = i + MODIFIER;
    u8* f = warps[w].file;
    const int type = q[0], sums = q[1] / 2, depth = type == TF32 ? 8 : 16;
    f64 a[16][16];
    if (q[2]) {
      const u32* registers[4];
      for (int r = 0; r < 4; ++r) registers[r] = (u32*)(f + o[sums + r]);
      rows_of(a, registers, 4, type);
    } else {
      operand_rows(w, pc, product.a, q[3], 16 * (w & 3), 16, type, [&](int r, int k, u32 x, u32) {
        if (r >= 0) a[r][k] = element(x, 0, type);
      });
    }
    std::vector<f64> columns(q[1] * depth);
    operand_rows(w, pc, product.b, q[4], 0, q[1], type, [&](int n, int k, u32 x, u32) {
      if (n >= 0) columns[n * depth + k] = element(x, 0, type);
    });
    for (int block = 0; block < q[1] / 8; ++block) {
      f64 b[16][8];
      for (int k = 0; k < depth; ++k)
        for (int n = 0; n < 8; ++n) b[k][n] = columns[(8 * block + n) * depth + k];
      f32* sum[4];
      for (int r = 0; r < 4; ++r) sum[r] = (f32*)(f + o[4 * block + r]);
      multiply(a, b, depth, product.adds ? sum : nullptr, sum, run.perturb);
    }
  }

  void swap_sums(int w, Product& product) {
    const s32 *i = at(product.pc), *o = run.operands + i[FIRST_OPERAND];
    for (int r = 0; r < i[MODIFIER + 1] / 2; ++r)
      for (int l = 0; l < 32; ++l) std::swap(product.sums[32 * r + l], ((f32*)(warps[w].file + o[r]))[l]);
  }

  // What the instruction takes when it is issued; the matrices themselves it reads until it is waited for.
  Product issued(int w, s32 pc) const {
    const s32 *i = at(pc), *o = run.operands + i[FIRST_OPERAND] + i[MODIFIER + 1] / 2;
    const u8* f = warps[w].file;
    const bool registers = i[MODIFIER + 2];
    const s32* rest = o + (registers ? 4 : 1);
    return {pc, warps[w].products_committed, registers ? 0 : *(const u64*)(f + o[0]), *(const u64*)(f + rest[0]),
            (bool)(*(const u32*)(f + rest[1]) & 1), {}};
  }

  // Early: done at once. Late: when it is waited for; until then the accumulator reads as NaN.
  void start_product(int w, s32 pc) {
    Warp& warp = warps[w];
    const s32 *i = at(pc), first = run.operands[i[FIRST_OPERAND]];
    Product product = issued(w, pc);
    mark_operands(w, product, 1);
    if (!run.late) {
      group_product(w, product);
    } else {
      bool away = false;
      for (const Product& other : warp.products)
        away |= run.operands[at(other.pc)[FIRST_OPERAND]] == first;
      if (!away) {
        product.sums.assign(16 * i[MODIFIER + 1], NAN);
        swap_sums(w, product);
      }
    }
    warp.products.push_back(std::move(product));
  }

  void wait_products(int w, u32 left) {
    Warp& warp = warps[w];
    while (!warp.products.empty() && warp.products[0].group + left < warp.products_committed) {
      Product product = std::move(warp.products[0]);
      warp.products.erase(warp.products.begin());
      mark_operands(w, product, -1);
      if (!run.late) continue;
      if (!product.sums.empty()) swap_sums(w, product);
      group_product(w, product);
      const s32 first = run.operands[at(product.pc)[FIRST_OPERAND]];
      for (Product& next : warp.products)
        if (run.operands[at(next.pc)[FIRST_OPERAND]] == first) {
          next.sums.assign(16 * at(next.pc)[MODIFIER + 1], NAN);
          swap_sums(w, next);
          break;
        }
    }
  }
};

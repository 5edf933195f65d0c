// The warps of a program, and what moves values between their registers and memory.
#pragma once
#include "memory.h"

// Words of an instruction; its operands are offsets into a warp's registers, negative for constants.
enum { WORDS = 12, OPCODE = 0, GUARD = 1, NEGATED = 2, TARGET = 3, FIRST_OPERAND = 4, MODIFIER = 5 };
enum { BRA = 1000, RET, BAR, WARPBAR, LD, ST, CP_ASYNC, CP_COMMIT, CP_WAIT, SHFL, LDMATRIX, STMATRIX, MMA, TRAP,
       NOP, REDUX, LD_PARAM, WGMMA, WGMMA_COMMIT, WGMMA_WAIT, PROXY_FENCE };
struct Copy { u32 to; u64 from; u32 size, amount, group, lane; s32 pc; };
// a, b: descriptors; sums: the accumulator while it is away.
struct Product { s32 pc; u32 group; u64 a, b; bool adds; std::vector<f32> sums; };
struct Fragment { s32 pc; u32 mask; };

struct Warp {
  u8* file;
  s32 pc; u32 active; bool waiting, done;
  u32 committed, products_committed;
  std::vector<Copy> copies;
  std::vector<Product> products;
  std::vector<Fragment> others;
};

struct Transfers : Memory {
  std::vector<Warp> warps;

  explicit Transfers(Launch& launch) : Memory(launch), warps(launch.warps) {}

  const s32* at(s32 pc) const { return run.code + (size_t)pc * WORDS; }

  // Asynchronous copies to shared memory.

  void copy_async(const s32* o, const s32* q, u32 m, int w, s32 pc) {
    Warp& warp = warps[w];
    u8* f = warp.file;
    for (int lane = 0; lane < 32; ++lane) {
      if (!(m >> lane & 1)) continue;
      Copy copy{((u32*)(f + o[0]))[lane] + (u32)q[1], ((u64*)(f + o[1]))[lane] + (u64)(s64)q[2], (u32)q[0],
                ((u32*)(f + o[2]))[lane], warp.committed, (u32)lane, pc};
      const Access by{pc, w, lane, true, false};
      if (copy.amount > copy.size) { report(OUT_OF_BOUNDS, by, -1, copy.from); copy.amount = copy.size; }
      u8 other[16]; memset(other, 0xa5, 16);
      if (!in_shared(copy.to, copy.size, other, by)) continue;
      run.traffic[0] += copy.amount; run.traffic[3] += copy.size;
      if (run.late) memset(shared.data() + copy.to, 0xff, copy.size); else land(copy, w);
      each_shadow(copy.to, copy.size, [](Shadow& s) { ++s.pending; });
      warp.copies.push_back(copy);
    }
  }

  void land(const Copy& copy, int w) {
    u8 data[16] = {0};
    if (copy.amount) {
      const u8* from = global(copy.from, copy.amount, nullptr, Access{copy.pc, w, (int)copy.lane, false, false});
      if (from) memcpy(data, from, copy.amount);
    }
    memcpy(shared.data() + copy.to, data, copy.size);
  }

  void wait_copies(int w, u32 left) {
    Warp& warp = warps[w];
    size_t kept = 0;
    for (const Copy& copy : warp.copies) {
      if (copy.group + left >= warp.committed) { warp.copies[kept++] = copy; continue; }
      each_shadow(copy.to, copy.size, [](Shadow& s) { --s.pending; });
      if (run.late) land(copy, w);
      if (run.check)  // it counts as written now, too
        in_shared(copy.to, copy.size, shared.data() + copy.to, Access{copy.pc, w, (int)copy.lane, true, false});
    }
    warp.copies.resize(kept);
  }

  void move(const s32* o, const s32* q, u32 m, int w, s32 pc, bool store) {
    u8* f = warps[w].file;
    const bool is_shared = q[0], is_signed = q[4];
    const u32 each = q[1], n = q[2], width = q[3];
    u64 moved = 0;
    for (int lane = 0; lane < 32; ++lane) {
      if (!(m >> lane & 1)) continue;
      const Access by{pc, w, lane, store, false};
      u64 address;
      if (q[6] == 8) address = ((u64*)(f + o[0]))[lane] + (u64)(s64)q[5];
      else address = (u32)(((u32*)(f + o[0]))[lane] + (u32)q[5]);
      u8 data[32];
      if (store)
        for (u32 k = 0; k < n; ++k) memcpy(data + k * each, f + o[1 + k] + lane * width, each);
      u8* place = is_shared ? in_shared((u32)address, each * n, data, by) : global(address, each * n, data, by);
      moved += each * n;
      if (store) { if (place) memcpy(place, data, each * n); continue; }
      for (u32 k = 0; k < n; ++k) {
        u64 value = 0x7fc07fc07fc07fc0ull;
        if (place) {
          value = 0; memcpy(&value, place + k * each, each);
          if (is_signed && each < 8 && value >> (8 * each - 1) & 1) value |= ~0ull << 8 * each;
        }
        memcpy(f + o[1 + k] + lane * width, &value, width);
      }
    }
    run.traffic[(is_shared ? 2 : 0) + store] += moved;
  }

  void shuffle(const s32* o, const s32* q, u32 m, u8* f) {
    const u32 *a = (u32*)(f + o[1]), *b = (u32*)(f + o[2]), *c = (u32*)(f + o[3]);
    u32 r[32], good = 0;
    for (int l = 0; l < 32; ++l) {
      const u32 clamp = c[l] & 31, segment = c[l] >> 8 & 31, by = b[l] & 31;
      const u32 highest = (l & segment) | (clamp & ~segment), lowest = l & segment;
      s32 j; bool p;
      if (q[0] == 0) { j = l - (s32)by; p = j >= (s32)highest; }
      else if (q[0] == 1) { j = l + by; p = j <= (s32)highest; }
      else if (q[0] == 2) { j = l ^ by; p = j <= (s32)highest; }
      else { j = lowest | (by & ~segment); p = j <= (s32)highest; }
      if (!p) j = l;
      r[l] = a[j]; good |= (u32)p << l;
    }
    u32* d = (u32*)(f + o[0]);
    for (int l = 0; l < 32; ++l) if (m >> l & 1) d[l] = r[l];
    if (q[1]) { u32* d2 = (u32*)(f + o[4]); *d2 = (*d2 & ~m) | (good & m); }
  }

  void reduce(const s32* o, int kind, u32 m, u8* f) {
    const u32* a = (u32*)(f + o[1]);
    u32 r = a[0];
    for (int l = 1; l < 32; ++l) {
      const u32 x = a[l];
      switch (kind) {
        case 0: r += x; break;
        case 1: r = x < r ? x : r; break;
        case 2: r = x > r ? x : r; break;
        case 3: r = (s32)x < (s32)r ? x : r; break;
        case 4: r = (s32)x > (s32)r ? x : r; break;
        case 5: r &= x; break;
        case 6: r |= x; break;
        default: r ^= x;
      }
    }
    u32* d = (u32*)(f + o[0]);
    for (int l = 0; l < 32; ++l) if (m >> l & 1) d[l] = r;
  }

  // 8 by 8 matrices of 16 bits between shared memory and registers: q = count, transposed, offset.
  void matrices(const s32* o, const s32* q, int w, s32 pc, bool store) {
    u8* f = warps[w].file;
    const u32* a = (u32*)(f + o[0]);
    for (int k = 0; k < q[0]; ++k) {
      u32* d = (u32*)(f + o[1 + k]);
      u16 rows[8][8];
      if (store)
        for (int l = 0; l < 32; ++l)
          for (int e = 0; e < 2; ++e) {
            const int x = l >> 2, y = 2 * (l & 3) + e;
            (q[1] ? rows[y][x] : rows[x][y]) = (u16)(d[l] >> 16 * e);
          }
      for (int row = 0; row < 8; ++row) {
        const Access by{pc, w, 8 * k + row, store, false};
        u8* place = in_shared(a[8 * k + row] + (u32)q[2], 16, (u8*)rows[row], by);
        if (store) { if (place) memcpy(place, rows[row], 16); continue; }
        if (place) memcpy(rows[row], place, 16); else memset(rows[row], 0xff, 16);
      }
      run.traffic[2 + store] += 128;
      if (store) continue;
      for (int l = 0; l < 32; ++l) {
        const int x = l >> 2, y = 2 * (l & 3);
        d[l] = q[1] ? rows[y][x] | (u32)rows[y + 1][x] << 16 : rows[x][y] | (u32)rows[x][y + 1] << 16;
      }
    }
  }
};

// Executes one launch of a kernel: its programs in a random order, the warps of each in a random
// interleaving, 32 lanes at a time. Lane-by-lane instructions come from alu.py through a table.
#include <sys/mman.h>

#include "products.h"

enum { FOREVER = 1 << 20 };

struct Machine : Products {
  std::vector<u8> files;
  bool failed = false;
  u64 random_state;

  explicit Machine(Launch& launch) : Products(launch), random_state(launch.seed * 0x9e3779b97f4a7c15ull + 1) {}

  u32 random() {
    random_state ^= random_state << 13; random_state ^= random_state >> 7; random_state ^= random_state << 17;
    return (u32)(random_state >> 32);
  }

  void fail(int kind, s32 pc, int w) { report(kind, Access{pc, w, 0, false, false}, -1, 0); failed = true; }

  // Runs a warp for some instructions, or until it waits or ends.
  void step(int w, s64 steps) {
    Warp& warp = warps[w];
    u8* const f = warp.file;
    while (steps-- > 0 && !failed) {
      if (!warp.others.empty()) reconverge(warp);
      const s32 pc = warp.pc;
      const s32* i = run.code + (size_t)pc * WORDS;
      const s32* o = run.operands + i[FIRST_OPERAND]; const s32* q = i + MODIFIER;
      u32 m = warp.active;
      if (i[GUARD] >= 0) { const u32 p = *(u32*)(f + i[GUARD]); m &= i[NEGATED] ? ~p : p; }
      ++run.counts[pc]; ++stamp;
      warp.pc = pc + 1;
      if (i[OPCODE] < BRA) { run.table[i[OPCODE]](f, o, m); continue; }
      switch (i[OPCODE]) {
        case BRA:
          if (m == warp.active) { warp.pc = i[TARGET]; }
          else if (m) {
            ++run.divergences;
            warp.others.push_back({i[TARGET], m});
            warp.active &= ~m;
          }
          break;
        case RET:
          warp.active &= ~m;
          if (!warp.active) {
            if (warp.others.empty()) { warp.done = true; return; }
            warp.active = warp.others.back().mask; warp.pc = warp.others.back().pc; warp.others.pop_back();
          }
          break;
        case BAR:
          if (!warp.others.empty() || m != ~0u) return fail(DIVERGED, pc, w);
          if (q[1] && q[1] != run.warps * 32) return fail(DEADLOCK, pc, w);
          warp.waiting = true;
          return;
        case LD: if (m) move(o, q, m, w, pc, false); break;
        case ST: if (m) move(o, q, m, w, pc, true); break;
        case CP_ASYNC: copy_async(o, q, m, w, pc); break;
        case CP_COMMIT: ++warp.committed; break;
        case CP_WAIT: wait_copies(w, q[0]); break;
        case LD_PARAM:  // through an address, in units of 8 bytes a parameter
          for (int l = 0; l < 32; ++l)
            if (m >> l & 1)
              memcpy(f + o[0] + l * q[0], f + o[2] + (((u32*)(f + o[1]))[l] >> 3) * 256, q[0]);
          break;
        case NOP: break;
        case TRAP: if (m) return fail(TRAPPED, pc, w); break;
        default:
          if (m != ~0u) report(DIVERGED, Access{pc, w, 0, false, false}, -1, 0);
          together(i[OPCODE], o, q, m, w, pc);
      }
    }
  }

  // What all lanes of a warp have to do at once.
  void together(int opcode, const s32* o, const s32* q, u32 m, int w, s32 pc) {
    Warp& warp = warps[w];
    switch (opcode) {
      case WARPBAR: ++progress[w].epoch; break;
      case SHFL: shuffle(o, q, m, warp.file); break;
      case LDMATRIX: matrices(o, q, w, pc, false); break;
      case STMATRIX: matrices(o, q, w, pc, true); break;
      case MMA: mma(o, q, warp.file); break;
      case REDUX: reduce(o, q[0], m, warp.file); break;
      case WGMMA: start_product(w, pc); break;
      case WGMMA_COMMIT: ++warp.products_committed; break;
      case WGMMA_WAIT: wait_products(w, q[0]); break;
      case PROXY_FENCE: ++progress[w].fences; break;
      default: fail(TRAPPED, pc, w);
    }
  }

  // Lanes that took different ways go on at the lowest place first, and join where they meet.
  void reconverge(Warp& warp) {
    size_t lowest = 0;
    for (size_t k = 1; k < warp.others.size(); ++k)
      if (warp.others[k].pc < warp.others[lowest].pc) lowest = k;
    if (warp.others[lowest].pc < warp.pc) {
      std::swap(warp.others[lowest].pc, warp.pc); std::swap(warp.others[lowest].mask, warp.active);
    }
    for (size_t k = 0; k < warp.others.size();)
      if (warp.others[k].pc == warp.pc) {
        warp.active |= warp.others[k].mask; warp.others.erase(warp.others.begin() + k);
      } else ++k;
  }

  void start(int x, int y, int z) {
    forget_program();
    for (int w = 0; w < run.warps; ++w) {
      Warp& warp = warps[w];
      memcpy(warp.file - run.fixed_bytes, run.fixed, run.fixed_bytes);
      warp.pc = 0; warp.active = ~0u; warp.waiting = warp.done = false;
      warp.committed = warp.products_committed = 0;
      warp.copies.clear(); warp.products.clear(); warp.others.clear();
      const s32 uniform[10] = {0, x, y, z, run.grid[0], run.grid[1], run.grid[2], 0, w, run.warps * 32};
      for (int k = 0; k < 10; ++k) {
        if (!run.special[k]) continue;
        s32* place = (s32*)(warp.file + run.special[k]);
        for (int l = 0; l < 32; ++l) place[l] = k == 0 ? w * 32 + l : k == 7 ? l : uniform[k];
      }
    }
  }

  void one(int x, int y, int z) {
    start(x, y, z);
    while (!failed) {
      int able[32], count = 0, done = 0;
      for (int w = 0; w < run.warps; ++w) {
        if (warps[w].done) ++done;
        else if (!warps[w].waiting) able[count++] = w;
      }
      if (!count) {
        if (done == run.warps) return;
        if (done) return fail(DEADLOCK, warps[0].pc, 0);
        ++epoch;
        for (auto& warp : warps) warp.waiting = false;
        continue;
      }
      const int w = able[random() % count];
      // Short turns and long ones, so that a warp may also run far ahead.
      const u32 turn = random() % 4;
      step(w, turn == 0 ? 1 + random() % 8 : turn == 3 ? (s64)FOREVER : 1 + random() % run.quantum);
    }
  }

  void all() {
    const size_t each = (size_t)run.fixed_bytes + run.register_bytes;
    files.assign(run.warps * each + 64, (u8)run.garbage);
    for (int w = 0; w < run.warps; ++w) warps[w].file = files.data() + w * each + run.fixed_bytes;
    std::vector<s32> order((s64)run.grid[0] * run.grid[1] * run.grid[2]);
    for (size_t k = 0; k < order.size(); ++k) order[k] = (s32)k;
    if (run.seed)
      for (size_t k = order.size(); k > 1; --k) std::swap(order[k - 1], order[random() % k]);
    for (size_t k = 0; k < order.size() && !failed; ++k) {
      program = order[k];
      one(program % run.grid[0], program / run.grid[0] % run.grid[1], program / run.grid[0] / run.grid[1]);
    }
  }
};

extern "C" int shadow_bytes() { return sizeof(Shadow); }

extern "C" int run_launch(Launch* launch) {
  std::vector<size_t> sizes(launch->region_count);
  if (launch->check)
    for (s32 k = 0; k < launch->region_count; ++k) {
      sizes[k] = (launch->regions[k].size / launch->small_global + 64) * sizeof(Shadow);
      launch->regions[k].shadow = (Shadow*)mmap(nullptr, sizes[k], PROT_READ | PROT_WRITE,
                                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    }
  Machine machine(*launch);
  machine.all();
  if (launch->check)
    for (s32 k = 0; k < launch->region_count; ++k) munmap(launch->regions[k].shadow, sizes[k]);
  return machine.failed;
}

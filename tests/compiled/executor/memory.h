// Global and shared memory of a launch: bounds, and who touched which granule last.
#pragma once
#include <vector>

#include "arithmetic.h"

// What is reported; the names are in launch.py.
enum { OUT_OF_BOUNDS, MISALIGNED, RACE_WARPS, RACE_PROGRAMS, COLLISION, PENDING, UNWRITTEN_SHARED, UNSYNCED_LANES,
       DIVERGED, DEADLOCK, SHARED_BOUNDS, SAME_VALUE, TRAPPED, UNWRITTEN_GLOBAL, SAME_VALUE_WARPS, UNFENCED };

// Of a granule of memory: who wrote and who read it last. Epochs count barriers.
struct Shadow {
  u32 write_epoch, write_warp_epoch, stamp, write_pc;
  u16 write_warp, write_lane;
  u32 read_epoch, read_warps, read_lanes, read_warp_epoch, read_pc;
  s32 write_program, read_program;
  u32 pending;      // copies on their way to it
  u32 pending_reads;  // products that may still read it
  u32 write_fences;
};
struct Region { u64 base, size; u8* host; u8* valid; u8* poison; Shadow* shadow; };
struct Report { s32 kind, pc, other, program, warp, lane; u64 address; u64 count; };

// One access: by which lane of which warp, at which instruction.
struct Access { s32 pc; int warp, lane; bool write, async; };

struct Launch {
  const s32* code; const s32* operands;
  s32 register_bytes, fixed_bytes; const u8* fixed; s32 garbage;
  s32 warps; s32 grid[3]; s32 special[10];  // tid.x ctaid.xyz nctaid.xyz laneid warpid ntid.x
  s32 shared_bytes, small_shared, small_global;
  Region* regions; s32 region_count;
  u64 seed; s32 quantum; s32 late; s32 check; s32 perturb;
  Report* reports; s32 report_room; s32 report_count;
  u64* counts;  // of each instruction, by warps
  u64 traffic[4];  // bytes loaded and stored, global then shared
  u64 divergences;
  Operation* table;
};

struct Progress { u32 epoch, fences; };  // of a warp: bar.warp.sync and fences of the async proxy so far

struct Memory {
  Launch& run;
  std::vector<u8> shared; std::vector<Shadow> shared_shadow;
  std::vector<Progress> progress;
  u32 epoch = 1, first_epoch = 1, stamp = 1;
  s32 program = 0;

  explicit Memory(Launch& launch) : run(launch), shared(launch.shared_bytes + 64), progress(launch.warps) {
    if (run.check) shared_shadow.resize(run.shared_bytes / run.small_shared + 16);
  }

  void report(int kind, const Access& by, s32 other, u64 address) {
    for (s32 i = 0; i < run.report_count; ++i) {
      Report& r = run.reports[i];
      if (r.kind == kind && r.pc == by.pc && r.other == other) { ++r.count; return; }
    }
    if (run.report_count < run.report_room)
      run.reports[run.report_count++] = Report{kind, by.pc, other, program, by.warp, by.lane, address, 1};
  }

  // The region that holds the bytes of an access to global memory, or null.
  Region* find(u64 address, u32 size, const Access& by) {
    if (size && address % size) { report(MISALIGNED, by, -1, address); return nullptr; }
    const u64 index = (address >> 36) - 1;
    if (index >= (u64)run.region_count) { report(OUT_OF_BOUNDS, by, -1, address); return nullptr; }
    Region& region = run.regions[index];
    if (address < region.base || address + size > region.base + region.size) {
      report(OUT_OF_BOUNDS, by, -1, address); return nullptr;
    }
    const u8* valid = region.valid + (address - region.base);
    for (u32 i = 0; i < size; ++i)
      if (!valid[i]) { report(OUT_OF_BOUNDS, by, -1, address); return nullptr; }
    return &region;
  }

  void against_writes(Shadow* s, const Access& by, bool global, bool changes, u64 address) {
    if (s->pending) report(PENDING, by, s->write_pc, address);
    if (by.write && s->pending_reads) report(PENDING, by, s->read_pc, address);
    if (s->write_epoch == epoch) {
      if (s->write_warp != by.warp) {
        report(by.write && !changes ? SAME_VALUE_WARPS : RACE_WARPS, by, s->write_pc, address);
      } else if (s->write_lane != by.lane && !by.async) {
        if (by.write && s->stamp == stamp)
          report(changes ? COLLISION : SAME_VALUE, by, s->write_pc, address);
        else if (s->write_warp_epoch == progress[by.warp].epoch)
          report(UNSYNCED_LANES, by, s->write_pc, address);
      }
    }
    if (by.async && s->write_epoch >= first_epoch && s->write_fences == progress[s->write_warp].fences)
      report(UNFENCED, by, s->write_pc, address);
    if (global && s->write_program && s->write_program != program + 1)
      report(RACE_PROGRAMS, by, s->write_pc, address);
  }

  void write(Shadow* s, const Access& by, bool global, u64 address) {
    const u32 warp_epoch = progress[by.warp].epoch;
    if (s->read_epoch == epoch) {
      if (s->read_warps & ~(1u << by.warp)) report(RACE_WARPS, by, s->read_pc, address);
      else if (s->read_warp_epoch == warp_epoch && (s->read_lanes & ~(1u << by.lane)))
        report(UNSYNCED_LANES, by, s->read_pc, address);
    }
    if (global && s->read_program && s->read_program != program + 1)
      report(RACE_PROGRAMS, by, s->read_pc, address);
    s->write_epoch = epoch; s->write_warp = (u16)by.warp; s->write_lane = (u16)by.lane; s->stamp = stamp;
    s->write_warp_epoch = warp_epoch; s->write_pc = by.pc; s->write_program = program + 1;
    s->write_fences = progress[by.warp].fences;
  }

  void read(Shadow* s, const Access& by, bool global, u64 address) {
    const u32 warp_epoch = progress[by.warp].epoch;
    if (!global && s->write_epoch < first_epoch) report(UNWRITTEN_SHARED, by, -1, address);
    if (s->read_epoch != epoch) { s->read_epoch = epoch; s->read_warps = 0; s->read_lanes = 0; }
    else if (s->read_warp_epoch != warp_epoch && s->read_warps == 1u << by.warp) s->read_lanes = 0;
    s->read_warps |= 1u << by.warp; s->read_lanes |= 1u << by.lane; s->read_warp_epoch = warp_epoch;
    s->read_pc = by.pc;
    s->read_program = !s->read_program || s->read_program == program + 1 ? program + 1 : -1;
  }

  void touch(Shadow* s, u32 granules, const Access& by, bool global, u64 address, bool changes) {
    for (u32 i = 0; i < granules; ++i, ++s) {
      against_writes(s, by, global, changes, address);
      if (by.write) write(s, by, global, address); else read(s, by, global, address);
    }
  }

  // Where an access to global memory finds its bytes, or null. data: what a write will leave there.
  u8* global(u64 address, u32 size, const u8* data, const Access& by) {
    Region* region = find(address, size, by);
    if (!region) return nullptr;
    u8* place = region->host + (address - region->base);
    if (!run.check) return place;
    const u64 at = (address - (region->base & ~15ull)) / run.small_global;
    touch(region->shadow + at, size / run.small_global, by, true, address, by.write && memcmp(place, data, size));
    u8* poison = region->poison + (address - region->base);
    if (by.write) { memset(poison, 0, size); return place; }
    for (u32 i = 0; i < size; ++i)
      if (poison[i]) { report(UNWRITTEN_GLOBAL, by, -1, address); break; }
    return place;
  }

  u8* in_shared(u32 address, u32 size, const u8* data, const Access& by) {
    if (address % size) { report(MISALIGNED, by, -1, address); return nullptr; }
    if ((u64)address + size > (u64)run.shared_bytes) { report(SHARED_BOUNDS, by, -1, address); return nullptr; }
    u8* place = shared.data() + address;
    if (run.check)
      touch(shared_shadow.data() + address / run.small_shared, size / run.small_shared, by, false, address,
            by.write && memcmp(place, data, size));
    return place;
  }

  template <class F> void each_shadow(u32 address, u32 size, F change) {
    if (!run.check) return;
    for (u32 i = 0; i < size / run.small_shared; ++i) change(shared_shadow[address / run.small_shared + i]);
  }

  void forget_program() {
    memset(shared.data(), 0xff, shared.size());
    for (auto& s : shared_shadow) s.pending = s.pending_reads = 0;
    for (auto& p : progress) p = Progress{1, 0};
    first_epoch = ++epoch;
  }
};

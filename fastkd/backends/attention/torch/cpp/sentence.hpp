// A sentence from queries and keys to loss and gradients: a short one in a single thread, a long
// one in blocks of query rows by all threads together.
#pragma once

#include <math.h>

#include "rows.hpp"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace fastkd {

// Where a map's vectors lie: element d of row i of sentence b at data[b · sentence + i · row + d].
struct Head {
    float* data;
    int64_t sentence, row;

    float* of(int64_t index) const { return data + index * sentence; }
};

struct Side {
    int64_t size;  // of a head, a multiple of LANES
    float scale;
    int64_t rounds;  // queries and keys enter products as bfloat16
    const Head *query, *key;  // of each map; maps that share a key repeat it
};

struct Call {
    Mix mix;
    Side student, teacher;
    const Head *query_gradient, *key_gradient;  // of each student map; the keys' are zeros at first
    int64_t causal;
    int64_t map_cells;       // of a MAP's group with cells that are zero in both; 0: those seen
    const float* upstream;   // (batch, teachers)
    double* loss;            // (batch, teachers)
    float* weight_gradient;  // (teachers, students), times temperature
    int64_t count;
    const int64_t *order, *rows, *keys;  // (count) the sentences, most work first
    int64_t workspace;       // floats for scores
    int64_t threads;
    float* memory;           // as much as fastkd_memory says
};

constexpr int64_t BAND = 8 * HEIGHT;  // rows whose scores are computed together
constexpr int64_t GAP = 32;  // between maps: a power of two apart, they would share cache lines
constexpr int64_t MOST_ROWS = 8;  // whose part of the weight's gradient is computed together

// log(1 + x) for x > −1, near 0 too
inline vec log_plus_one(vec x) {
    vec u = x + 1.0f;
    vec far = logarithm(u) * x / (u == 1.0f ? splat(1.0f) : u - 1.0f);
    return u == 1.0f ? x : far;
}

inline int64_t longest_head(const Call& call) {
    return call.student.size > call.teacher.size ? call.student.size : call.teacher.size;
}

// What one thread needs besides the scores.
struct Desk {
    double* totals;     // (SUMS, teachers)
    Scratch scratch;
    float* sums;        // (SUMS, teachers) and a vector more
    float* transposed;  // a head's keys, in panels
    float* band;        // a head's queries, rounded: (BAND, size)

    static int64_t size(const Call& call, int64_t stride) {
        int64_t size = 2 * SUMS * call.mix.teachers + Scratch::size(call.mix, stride) +
                       SUMS * call.mix.teachers + LANES +
                       longest_head(call) * (stride + PANEL + BAND);
        return (size + LANES) / LANES * LANES;
    }
    Desk(float* memory, const Call& call, int64_t stride)
        : totals(reinterpret_cast<double*>(memory)),
          scratch(memory + 2 * SUMS * call.mix.teachers, call.mix, stride) {
        sums = memory + 2 * SUMS * call.mix.teachers + Scratch::size(call.mix, stride);
        transposed = sums + SUMS * call.mix.teachers + LANES;
        band = transposed + longest_head(call) * (stride + PANEL);
    }
};

// Floats that the scores of a block of rows take.
inline int64_t scores_size(const Mix& mix, int64_t rows, int64_t stride) {
    return (mix.students + mix.teachers) * (rows * stride + GAP);
}

// Whether all threads work on a sentence together.
inline bool is_long(const Call& call, int64_t n) {
    return scores_size(call.mix, call.rows[n], padded(call.keys[n])) * call.threads >
           call.workspace;
}

// Query rows of a sentence that are held at once.
inline int64_t block_rows(const Call& call, int64_t n) {
    if (!is_long(call, n)) return call.rows[n];
    const int64_t maps = call.mix.students + call.mix.teachers;
    const int64_t rows = call.workspace / (maps * padded(call.keys[n]));
    const int64_t whole = rows < BAND ? rows : rows / BAND * BAND;
    return whole < 1 ? 1 : whole < call.rows[n] ? whole : call.rows[n];
}

// One thread's part in a sentence.
struct Sentence {
    const Call& call;
    const Mix& mix;
    int64_t index, rows, keys, height;  // height: rows of a block
    int64_t thread, threads;
    Desk desk;
    float* desks;  // of all threads, `desk_size` apart
    int64_t desk_size;
    int64_t stride, step;
    float *student, *teacher;  // scores of a block, (maps, step); shared by the threads

    Sentence(const Call& call, int64_t n, int64_t thread, int64_t threads, float* desks,
             int64_t desk_size, float* scores)
        : call(call), mix(call.mix), index(call.order[n]), rows(call.rows[n]), keys(call.keys[n]),
          height(block_rows(call, n)), thread(thread), threads(threads),
          desk(desks + thread * desk_size, call, padded(keys)), desks(desks), desk_size(desk_size),
          stride(padded(keys)), step(height * stride + GAP), student(scores),
          teacher(scores + mix.students * step) {}

    void wait() const {
#ifdef _OPENMP
        if (threads > 1) {
#pragma omp barrier
        }
#endif
    }

    int64_t seen(int64_t i) const { return call.causal && i + 1 < keys ? i + 1 : keys; }

    // Rows of a head's queries, as they enter products.
    Panels queries(const Side& side, const Head& query, int64_t start, int64_t count) const {
        const float* from = query.of(index) + start * query.row;
        if (!side.rounds) return {from, query.row};
        rounded(from, query.row, count, side.size, desk.band);
        return {desk.band, side.size};
    }

    // Of my share of a side's maps, for `count` query rows from `start` on.
    void scores(const Side& side, int64_t maps, float* out, int64_t start, int64_t count) const {
        const int64_t panel = side.size * PANEL, width = padded(seen(start + count - 1));
        const float* last = nullptr;
        for (int64_t h = maps * thread / threads; h < maps * (thread + 1) / threads; h++) {
            const Head& query = side.query[h];
            const float* key = side.key[h].of(index);
            if (key != last) {
                transpose(key, side.key[h].row, width < keys ? width : keys, side.size,
                          desk.transposed, panel, width);
                if (side.rounds)
                    rounded(desk.transposed, PANEL, (width + PANEL - 1) / PANEL * side.size, PANEL,
                            desk.transposed);
            }
            last = key;
            for (int64_t i = 0; i < count; i += BAND) {
                int64_t many = count - i < BAND ? count - i : BAND;
                const Panels from = queries(side, query, start + i, many);
                multiply({from.data, from.row, 1}, {desk.transposed, PANEL, panel}, side.size,
                         out + h * step + i * stride, stride, many,
                         padded(seen(start + i + many - 1)), side.scale, false);
            }
        }
    }

    // Of my share of the student's queries and keys; maps that share a key are not parted.
    void gradients(int64_t start, int64_t count) const {
        const Side& side = call.student;
        int64_t group = 1;
        const Head* keys = call.key_gradient;  // inputs may share memory without sharing a head
        while (group < mix.students && keys[group].data == keys[0].data) group++;
        const int64_t groups = mix.students / group;
        const int64_t first = groups * thread / threads, last = groups * (thread + 1) / threads;
        for (int64_t h = first * group; h < last * group; h++) {
            const Head &query = side.query[h], &key = side.key[h];
            const Head &query_out = call.query_gradient[h], &key_out = call.key_gradient[h];
            Panels key_rows = {key.of(index), key.row};
            if (side.rounds) {
                rounded(key_rows.data, key.row, seen(start + count - 1), side.size,
                        desk.transposed);
                key_rows = {desk.transposed, side.size};
            }
            for (int64_t i = 0; i < count; i += BAND) {
                int64_t many = count - i < BAND ? count - i : BAND;
                int64_t cells = seen(start + i + many - 1);
                const float* maps = student + h * step + i * stride;
                multiply({maps, stride, 1}, key_rows, cells,
                         query_out.of(index) + (start + i) * query_out.row, query_out.row, many,
                         side.size, side.scale, false);
                multiply({maps, 1, stride}, queries(side, query, start + i, many), many,
                         key_out.of(index), key_out.row, cells, side.size, side.scale, true);
            }
        }
    }

    // Calls action(rows, how many) for my share of a block's rows, a few at a time.
    template <class Action> void deal(int64_t start, int64_t count, Action action) const {
        int64_t few = 256 / stride;
        few = few < 1 ? 1 : few < MOST_ROWS ? few : MOST_ROWS;
        for (int64_t i = thread * few; i < count; i += threads * few) {
            Row dealt[MOST_ROWS] = {row(start, i), row(start, i), row(start, i), row(start, i),
                                    row(start, i), row(start, i), row(start, i), row(start, i)};
            int64_t many = count - i < few ? count - i : few;
            for (int64_t n = 1; n < many; n++) {
                dealt[n].seen = seen(start + i + n);
                dealt[n].student += n * stride;
                dealt[n].teacher += n * stride;
            }
            action(dealt, many);
        }
    }

    Row row(int64_t start, int64_t i) const {
        return {mix,    desk.scratch,         seen(start + i),     stride,
                step,   student + i * stride, teacher + i * stride};
    }

    void backward(const Row* dealt, int64_t many) const {
        if (mix.learn_weight) learn(mix, desk.scratch, dealt, many);
        if (mix.learn_maps)
            for (int64_t n = 0; n < many; n++) dealt[n].backward();
    }

    // Block by block: scores, what `action` does with their rows, gradients.
    template <class Action> void walk(bool gradient, bool fresh, Action action) const {
        for (int64_t start = 0; start < rows; start += height) {
            int64_t count = rows - start < height ? rows - start : height;
            if (fresh || height < rows) {
                scores(call.student, mix.students, student, start, count);
                scores(call.teacher, mix.teachers, teacher, start, count);
                wait();
            }
            deal(start, count, action);
            wait();
            if (gradient && mix.learn_maps) {
                gradients(start, count);
                wait();
            }
        }
    }

    void run() const {
        const float* upstream = call.upstream + index * mix.teachers;
        memset(desk.totals, 0, SUMS * mix.teachers * sizeof(double));
        if (mix.loss == MAP) {
            run_map(upstream);
            return;
        }
        walk(true, true, [&](const Row* dealt, int64_t many) {
            for (int64_t n = 0; n < many; n++) {
                dealt[n].normalize();
                if (mix.loss == MIXTURE) {
                    dealt[n].differentiate_mixture(upstream, desk.sums);
                } else {
                    dealt[n].divide_row(upstream, desk.sums);
                    divergence();
                }
                for (int64_t j = 0; j < mix.teachers; j++) desk.totals[j] += desk.sums[j];
            }
            backward(dealt, many);
        });
        if (thread == 0)
            for (int64_t j = 0; j < mix.teachers; j++)
                call.loss[index * mix.teachers + j] = total(j);
        wait();
    }

    // desk.sums: from those of a row to its loss
    void divergence() const {
        const int64_t teachers = mix.teachers;
        for (int64_t j = 0; j < teachers; j += LANES) {
            vec z = load(desk.sums + j), mean = load(desk.sums + teachers + j) / z;
            vec ratio = mean + load(desk.sums + 2 * teachers + j) / z;
            vec log_ratio = log_plus_one(ratio);
            if (mix.sharp) {
                vec far = logarithm(load(desk.sums + 3 * teachers + j) / z);
                log_ratio = ratio < -0.5f ? far : log_ratio;
            }
            vec loss = log_ratio - mean;
            for (int l = 0; l < LANES && j + l < teachers; l++) desk.sums[j + l] = loss[l];
        }
    }

    double total(int64_t n) const {
        double result = 0;
        for (int64_t t = 0; t < threads; t++)
            result += reinterpret_cast<const double*>(desks + t * desk_size)[n];
        return result;
    }

    void run_map(const float* upstream) const {
        const int64_t teachers = mix.teachers;
        double cells = 0;
        for (int64_t i = 0; i < rows; i++) cells += seen(i);
        const double zeros = call.map_cells ? call.map_cells - cells : 0;
        float *centre = desk.scratch.row, *rest = centre + teachers, *factor = rest + teachers;
        for (int64_t j = 0; j < teachers; j++)
            centre[j] = mix.surplus[j] * rows / (cells + zeros);
        walk(false, true, [&](const Row* dealt, int64_t many) {
            for (int64_t n = 0; n < many; n++) {
                dealt[n].normalize();
                dealt[n].add_up(centre, desk.sums, false);
                for (int64_t s = 0; s < SUMS * teachers; s++) desk.totals[s] += desk.sums[s];
            }
        });
        for (int64_t j = 0; j < teachers; j++) {
            const double shift = -double(centre[j]), grown = expm1(shift);
            const double z = total(j) + zeros;
            const double mean = (total(teachers + j) + zeros * shift) / z;
            const double ratio = mean + (total(2 * teachers + j) + zeros * (grown - shift)) / z;
            const double log_ratio =
                mix.sharp && ratio < -0.5
                    ? log((total(3 * teachers + j) + zeros * exp(shift)) / z)
                    : log1p(ratio);
            if (thread == 0) call.loss[index * teachers + j] = log_ratio - mean;
            const double level = centre[j] + log_ratio;
            centre[j] = level;
            rest[j] = level - centre[j];  // all cells would move alike without it
            factor[j] = upstream[j] / z;
        }
        wait();
        if (!mix.learning()) return;
        const bool again = height < rows;
        walk(true, false, [&](const Row* dealt, int64_t many) {
            for (int64_t n = 0; n < many; n++) {
                if (again) dealt[n].normalize();
                dealt[n].differentiate_map(centre, rest, factor);
            }
            backward(dealt, many);
        });
    }
};

}  // namespace fastkd

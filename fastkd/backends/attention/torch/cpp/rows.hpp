// Softmax, mixing, divergence and their gradient, one query row of all maps at a time. The cells
// that count lie before the others. Formulas and names are those of divergence.py.
#pragma once

#include "products.hpp"

namespace fastkd {

constexpr int CELLS = 128;  // that pass through the steps together, in the nearest cache
constexpr int PAIR = 32;    // rows of cells are padded to a multiple of this
constexpr float SMALLEST = 0x1p-126f;
constexpr float LEAST = -87.336f;  // its exponential is the smallest normal number

inline int64_t padded(int64_t cells) { return (cells + PAIR - 1) / PAIR * PAIR; }

enum Loss : int64_t { MAP, ROW, MIXTURE };

// What is the same for every row of a call.
struct Mix {
    int64_t loss;                // of enum Loss
    int64_t students, teachers;  // maps
    int64_t learn_maps, learn_weight;
    int64_t row_cells;           // of a ROW's group with cells that are zero in both; 0: those seen
    int64_t sharp;               // 1 + D + E may cancel: sum exp(d) too
    float inverse_temperature;
    const float* weight;         // (teachers, students) / temperature; null: map n with map n
    const float* surplus;        // (teachers) weight's row sum − 1, / temperature

    bool learning() const { return learn_maps || learn_weight; }
    float scale() const { return loss == MIXTURE ? 1 : inverse_temperature; }
};

// Sums over a group are (SUMS, teachers): Z, Z·D, Z·E and, where `sharp`, Z·G = Σ exp(a)·exp(d).
constexpr int SUMS = 4;

inline void softmax(float* row, int64_t count, int64_t stride) {
    int64_t full = count / LANES * LANES;
    vec top = splat(-__builtin_inff());
    for (int64_t c = 0; c < full; c += LANES) top = larger(load(row + c), top);
    float highest = maximum(top);
    for (int64_t c = full; c < count; c++) highest = row[c] > highest ? row[c] : highest;
    vec total = {};
    for (int64_t c = 0; c < count; c += LANES) {
        vec x = load(row + c) - highest;
        vec grown = Exponential(x < LEAST ? splat(LEAST) : x).exp();
        grown = x < LEAST ? vec{} : grown;
        if (count - c < LANES) grown = first(grown, count - c);
        store(row + c, grown);
        total += grown;
    }
    float scale = 1.0f / sum(total);
    for (int64_t c = 0; c < count; c += LANES) store(row + c, load(row + c) * scale);
    int64_t end = (count + LANES - 1) / LANES * LANES;
    if (end < stride) memset(row + end, 0, (stride - end) * sizeof(float));
}

// A thread's own memory. The weight's gradient comes first, where it stays from call to call.
struct Scratch {
    float* weight_gradient;  // (teachers and students to multiples of 4, LANES)
    float* mixed;            // (teachers, CELLS)
    float* lanes;            // (SUMS · teachers, LANES)
    float* row;              // (3, teachers)
    float* gradient;         // (students, stride)
    float* grown;            // (teachers, stride)

    static int64_t fours(int64_t maps) { return (maps + 3) / 4 * 4; }
    static int64_t weights(const Mix& mix) {
        return fours(mix.teachers) * fours(mix.students) * LANES;
    }
    static int64_t size(const Mix& mix, int64_t stride) {
        return weights(mix) + mix.teachers * (CELLS + SUMS * LANES + 3) +
               (mix.students + mix.teachers) * stride;
    }
    Scratch(float* memory, const Mix& mix, int64_t stride) {
        weight_gradient = memory;
        mixed = weight_gradient + weights(mix);
        lanes = mixed + mix.teachers * CELLS;
        row = lanes + SUMS * mix.teachers * LANES;
        gradient = row + 3 * mix.teachers;
        grown = gradient + mix.students * stride;
    }
    void clear(const Mix& mix) const { memset(weight_gradient, 0, weights(mix) * sizeof(float)); }
};

struct Row {
    const Mix& mix;
    const Scratch& scratch;
    int64_t seen;          // cells that count
    int64_t stride, step;  // from row to row, from map to map
    float* student;        // of the first map
    float* teacher;

    // From scores to maps.
    void normalize() const {
        for (int64_t h = 0; h < mix.students; h++) softmax(student + h * step, seen, stride);
        for (int64_t j = 0; j < mix.teachers; j++) softmax(teacher + j * step, seen, stride);
    }

    // Calls action(start, width) after blending the student's maps into scratch.mixed, for `width`
    // cells from `start` on.
    template <class Action> void blended(Action action) const {
        for (int64_t start = 0; start < seen; start += CELLS) {
            int64_t width = padded(seen - start) < CELLS ? padded(seen - start) : CELLS;
            if (mix.weight)
                multiply({mix.weight, mix.students, 1}, {student + start, step}, mix.students,
                         scratch.mixed, CELLS, mix.teachers, width, 1, false);
            else
                for (int64_t j = 0; j < mix.students; j++)
                    for (int64_t c = 0; c < width; c += LANES)
                        store(scratch.mixed + j * CELLS + c,
                              load(student + j * step + start + c) * mix.scale());
            action(start, width);
        }
    }

    // exp(a), 0 where not seen
    vec weight(vec a, int64_t cell) const {
        vec w = Exponential(a).exp();
        return seen - cell < LANES ? first(w, seen - cell) : w;
    }

    // With `keep`, leaves exp(a) in `teacher`, and exp(d) − 1 in scratch.grown: exp(d) if SHARP.
    template <bool SHARP> void add_up(const float* centre, float* sums, bool keep) const {
        const int64_t teachers = mix.teachers;
        memset(scratch.lanes, 0, SUMS * teachers * LANES * sizeof(float));
        blended([&](int64_t start, int64_t width) {
            for (int64_t j = 0; j < teachers; j++) {
                float* place = scratch.lanes + SUMS * j * LANES;
                float* cells = teacher + j * step + start;
                float* grown = scratch.grown + j * stride + start;
                vec z = load(place), d = load(place + LANES), e = load(place + 2 * LANES);
                vec g = load(place + 3 * LANES);
                for (int64_t c = 0; c < width; c += LANES) {
                    vec a = load(cells + c) * mix.inverse_temperature;
                    vec x = load(scratch.mixed + j * CELLS + c) - a - centre[j];
                    vec w = weight(a, start + c);
                    const Exponential grows(x);
                    vec excess = grows.excess(x);
                    z += w;
                    d += w * x;
                    e += w * excess;
                    if (SHARP) g += w * grows.exp();
                    if (keep) {
                        store(cells + c, w);
                        store(grown + c, SHARP ? grows.exp() : excess + x);
                    }
                }
                store(place, z);
                store(place + LANES, d);
                store(place + 2 * LANES, e);
                store(place + 3 * LANES, g);
            }
        });
        for (int64_t j = 0; j < teachers; j++)
            for (int s = 0; s < SUMS; s++)
                sums[s * teachers + j] = sum(load(scratch.lanes + (SUMS * j + s) * LANES));
    }
    void add_up(const float* centre, float* sums, bool keep) const {
        if (mix.sharp)
            add_up<true>(centre, sums, keep);
        else
            add_up<false>(centre, sums, keep);
    }

    // The following leave the gradient of the mix in `teacher`.

    // centre + rest: such that Σ exp(m − it) = Z; factor: upstream / Z; of each teacher
    void differentiate_map(const float* centre, const float* rest, const float* factor) const {
        blended([&](int64_t start, int64_t width) {
            for (int64_t j = 0; j < mix.teachers; j++) {
                float* cells = teacher + j * step + start;
                for (int64_t c = 0; c < width; c += LANES) {
                    vec a = load(cells + c) * mix.inverse_temperature;
                    vec x = load(scratch.mixed + j * CELLS + c) - a - centre[j];
                    vec grown = Exponential(x).excess(x) + x;
                    grown -= (grown + 1.0f) * rest[j];
                    store(cells + c, weight(a, start + c) * grown * factor[j]);
                }
            }
        });
    }

    // After add_up with `keep`. ratio: D + E, or G; factor: upstream / (Z · (1 + D + E)), or
    // upstream / (Z · G); of each teacher
    void differentiate_row(const float* ratio, const float* factor) const {
        for (int64_t j = 0; j < mix.teachers; j++) {
            float* cells = teacher + j * step;
            const float* grown = scratch.grown + j * stride;
            for (int64_t c = 0; c < seen; c += LANES)
                store(cells + c, load(cells + c) * (load(grown + c) - ratio[j]) * factor[j]);
        }
    }

    // loss: of each teacher
    void differentiate_mixture(const float* upstream, float* loss) const {
        memset(scratch.lanes, 0, mix.teachers * LANES * sizeof(float));
        blended([&](int64_t start, int64_t width) {
            for (int64_t j = 0; j < mix.teachers; j++) {
                float* cells = teacher + j * step + start;
                vec total = load(scratch.lanes + j * LANES);
                for (int64_t c = 0; c < width; c += LANES) {
                    vec q = load(cells + c), r = load(scratch.mixed + j * CELLS + c);
                    vec ratio = q / larger(splat(SMALLEST), r);  // NaN stays
                    total += q * logarithm(larger(splat(SMALLEST), ratio));
                    store(cells + c, r < SMALLEST ? vec{} : -ratio * upstream[j]);
                }
                store(scratch.lanes + j * LANES, total);
            }
        });
        for (int64_t j = 0; j < mix.teachers; j++) loss[j] = sum(load(scratch.lanes + j * LANES));
    }

    // sums: of the row's groups, zeros included
    void divide_row(const float* upstream, float* sums) const {
        const int64_t teachers = mix.teachers;
        float *centre = scratch.row, *ratio = centre + teachers, *factor = ratio + teachers;
        const float cells = mix.row_cells ? mix.row_cells : seen;
        for (int64_t j = 0; j < teachers; j++) centre[j] = mix.surplus[j] / cells;
        add_up(centre, sums, mix.learning());
        for (int64_t j = 0; j < teachers; j++) {
            const vec x = splat(-centre[j]);
            const Exponential grows(x);
            const float zeros = cells - seen;
            sums[j] += zeros;
            sums[teachers + j] += zeros * x[0];
            sums[2 * teachers + j] += zeros * grows.excess(x)[0];
            sums[3 * teachers + j] += zeros * grows.exp()[0];
            ratio[j] = (sums[teachers + j] + sums[2 * teachers + j]) / sums[j];
            factor[j] = upstream[j] / (sums[j] * (1 + ratio[j]));
            if (mix.sharp) {
                ratio[j] = sums[3 * teachers + j] / sums[j];
                factor[j] = upstream[j] / sums[3 * teachers + j];
            }
        }
        if (mix.learning()) differentiate_row(ratio, factor);
    }

    // student: from maps to the gradient of scores
    void backward() const {
        if (mix.weight)
            multiply({mix.weight, 1, mix.students}, {teacher, step}, mix.teachers, scratch.gradient,
                     stride, mix.students, padded(seen), 1, false);
        for (int64_t h = 0; h < mix.students; h++) {
            float* p = student + h * step;
            const float* g = mix.weight ? scratch.gradient + h * stride : teacher + h * step;
            const float scale = mix.weight ? 1 : mix.scale();
            vec total = {};
            for (int64_t c = 0; c < seen; c += LANES) total += load(p + c) * load(g + c);
            const float delta = sum(total);
            for (int64_t c = 0; c < seen; c += LANES)
                store(p + c, load(p + c) * (load(g + c) - delta) * scale);
        }
    }
};

// weight_gradient += gradient of the mix @ mapsᵀ over the cells of some rows, in lanes.
inline void learn(const Mix& mix, const Scratch& scratch, const Row* rows, int64_t count) {
    const int64_t last_teacher = mix.teachers - 1, last_student = mix.students - 1;
    const int64_t line = Scratch::fours(mix.students);
    for (int64_t j = 0; j < mix.teachers; j += 4)
        for (int64_t h = 0; h < mix.students; h += 4) {
            float* place = scratch.weight_gradient + (j * line + h) * LANES;
            vec total[4][4];
            for (int t = 0; t < 4; t++)
                for (int u = 0; u < 4; u++) total[t][u] = load(place + (t * line + u) * LANES);
            for (const Row* row = rows; row < rows + count; row++) {
                const float *gradient[4], *maps[4];
                for (int t = 0; t < 4; t++) {
                    int64_t teacher = j + t < last_teacher ? j + t : last_teacher;
                    int64_t student = h + t < last_student ? h + t : last_student;
                    gradient[t] = row->teacher + teacher * row->step;
                    maps[t] = row->student + student * row->step;
                }
                for (int64_t c = 0; c < row->seen; c += LANES) {
                    vec p[4];
                    for (int u = 0; u < 4; u++) p[u] = held(maps[u] + c);
                    for (int t = 0; t < 4; t++) {
                        vec g = held(gradient[t] + c);
                        for (int u = 0; u < 4; u++) total[t][u] += g * p[u];
                    }
                }
            }
            for (int t = 0; t < 4; t++)
                for (int u = 0; u < 4; u++) store(place + (t * line + u) * LANES, total[t][u]);
        }
}

}  // namespace fastkd
